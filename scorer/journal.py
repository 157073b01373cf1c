"""What a job remembers of itself on disk: files that only grow, and the journal that says how far they count.

The journal is JSON, one object a line: first the job, then a line per commit, at last the completion record. Each line
is flushed to the disk before the next is written, so that only the last one can be torn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crc32c import crc32c

from scorer.batches import Position
from scorer.errors import ResumeError

_CHUNK = 1 << 20  # bytes read at once where a prefix is checked
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True)
class Mark:
    """How far a growing file counts: its length in bytes and the CRC32C of those bytes."""

    length: int = 0
    crc: int = 0


class Growing:
    """A file that only grows from a known prefix; whatever stood behind that prefix is cut off.

    Raises:
        ResumeError: the file does not start with the prefix that `mark` describes.
        OSError: as the system reports it, here and in every method.
    """

    def __init__(self, path: Path, mark: Mark = Mark()) -> None:
        self.path = path
        self.mark = mark
        self._synced = True  # up to `mark`, which was committed after that
        self._descriptor = os.open(path, _FLAGS, 0o666)
        try:
            self._check()
            os.ftruncate(self._descriptor, mark.length)
            os.lseek(self._descriptor, mark.length, os.SEEK_SET)
        except BaseException:
            os.close(self._descriptor)
            raise

    def _check(self) -> None:
        crc = _crc_of(self._descriptor, self.mark.length)
        if os.fstat(self._descriptor).st_size < self.mark.length or crc != self.mark.crc:
            raise ResumeError(
                f"{self.path}: its first {self.mark.length} bytes are not what was committed",
                remedy="use --restart to begin again",
            )

    def append(self, data: bytes) -> None:
        """Write `data`, all of it, at the end; `sync` makes it last."""
        write_all(self._descriptor, data)
        self.mark = Mark(self.mark.length + len(data), crc32c(data, self.mark.crc))
        self._synced = False

    def sync(self) -> None:
        """Make what was appended survive a power loss."""
        if not self._synced:
            os.fsync(self._descriptor)
            self._synced = True

    def close(self) -> None:
        os.close(self._descriptor)


def holds(path: Path, mark: Mark) -> bool:
    """Whether the file at `path` is there and is what `mark` describes, no less and no more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        size = os.fstat(descriptor).st_size
        return size == mark.length and _crc_of(descriptor, size) == mark.crc
    finally:
        os.close(descriptor)


def _crc_of(descriptor: int, length: int) -> int:
    crc = 0
    for start in range(0, length, _CHUNK):
        crc = crc32c(os.pread(descriptor, min(_CHUNK, length - start), start), crc)
    return crc


def write_all(descriptor: int, data: bytes) -> None:
    """Write `data`, however little of it the system takes at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@dataclass(frozen=True)
class Stamp:
    """What tells whether a shard is still the file it was: its size in bytes and its modification time in ns."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> Stamp | None:
        """The stamp of the file at `path`; None where there is none to be had."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns)

    def __str__(self) -> str:
        return f"{self.size} bytes modified at {self.mtime_ns} ns"


@dataclass(frozen=True)
class Commit:
    """All that is needed to go on after the rows that are on disk.

    `finished` has the shards completed since the commit before, in order, each with its count of records; `begun` is
    the stamp of the shard that `end` lies within, None where it lies between shards.
    """

    end: Position
    scored: int = 0
    set_aside: int = 0
    bytes_lost: int = 0
    finished: tuple[tuple[Stamp, int], ...] = ()
    begun: Stamp | None = None
    marks: Mapping[str, Mark] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "end": [self.end.shard, self.end.record, self.end.offset],
            "scored": self.scored,
            "set_aside": self.set_aside,
            "bytes_lost": self.bytes_lost,
            "finished": [[stamp.size, stamp.mtime_ns, records] for stamp, records in self.finished],
            "begun": self.begun and [self.begun.size, self.begun.mtime_ns],
            "marks": {name: [mark.length, mark.crc] for name, mark in self.marks.items()},
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Commit:
        return cls(
            end=Position(*entry["end"]),
            scored=entry["scored"],
            set_aside=entry["set_aside"],
            bytes_lost=entry["bytes_lost"],
            finished=tuple((Stamp(size, mtime_ns), records) for size, mtime_ns, records in entry["finished"]),
            begun=entry["begun"] and Stamp(*entry["begun"]),
            marks={name: Mark(*mark) for name, mark in entry["marks"].items()},
        )


@dataclass(frozen=True)
class Entry:
    """One whole line of a journal: its one key, what stands under it, and the journal up to its end."""

    key: str  # "job", "commit" or "complete"
    value: Any
    end: Mark


def entries(path: Path) -> Generator[Entry]:
    """The whole lines of the journal at `path`, one at a time; a torn last line, as a crash leaves it, is left out.

    Raises:
        ResumeError: a damaged line before the last.
    """
    end = Mark()
    damaged = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if damaged:
                raise ResumeError(f"{path}: line {damaged} is damaged", remedy="use --restart to begin again")
            end = Mark(end.length + len(line), crc32c(line, end.crc))
            try:
                key, value = _parsed(line)
            except ValueError:
                damaged = number
                continue
            yield Entry(key, value, end)


def _parsed(line: bytes) -> tuple[str, Any]:
    entry = json.loads(line)
    if not line.endswith(b"\n") or not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError("torn")
    key, value = entry.popitem()
    return str(key), value


def line(key: str, value: Any) -> bytes:
    """One line of a journal."""
    return json.dumps({key: value}, separators=(",", ":")).encode() + b"\n"
