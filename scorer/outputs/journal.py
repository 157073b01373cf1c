"""What a job remembers of itself on disk: files that only grow, and the journal that says how far they count.

The journal is JSON, one object a line: first the job, then a line per commit, at last the completion record. Each line
is flushed to the disk before the next is written, so that only the last one can be torn.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crc32c import crc32c

from scorer.errors import Hint, ResumeError
from scorer.inputs.position import Position
from scorer.inputs.source import FileStat
from scorer.outputs.atomic import write_all

APPEND_FILES = ("rows", "quarantine", "ids", "hits")
_FORMAT = 1  # of the journal; another is refused
_CHUNK = 1 << 20  # bytes read at once where a prefix is checked
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@dataclass(frozen=True)
class Checkpoint:
    """How far a growing file counts: its length in bytes and the CRC32C of those bytes."""

    length: int = 0
    crc: int = 0


class AppendFile:
    """A file that only grows from a known prefix; whatever stood behind that prefix is cut off.

    Raises:
        ResumeError: the file does not start with the prefix that `mark` describes.
        OSError: as the system reports it, here and in every method.
    """

    def __init__(self, path: Path, mark: Checkpoint = Checkpoint()) -> None:
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
                hints=(Hint.RESTART,),
            )

    def append(self, data: bytes) -> None:
        """Write `data`, all of it, at the end; `sync` makes it last."""
        write_all(self._descriptor, data)
        self.mark = Checkpoint(self.mark.length + len(data), crc32c(data, self.mark.crc))
        self._synced = False

    def sync(self) -> None:
        """Make what was appended survive a power loss."""
        if not self._synced:
            os.fsync(self._descriptor)
            self._synced = True

    def close(self) -> None:
        os.close(self._descriptor)


def holds(path: Path, mark: Checkpoint) -> bool:
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
    finished: tuple[tuple[FileStat, int], ...] = ()
    begun: FileStat | None = None
    marks: Mapping[str, Checkpoint] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {
            "end": [self.end.shard, self.end.record, self.end.offset],
            "scored": self.scored,
            "set_aside": self.set_aside,
            "bytes_lost": self.bytes_lost,
            "finished": [[stamp.size, stamp.version, records] for stamp, records in self.finished],
            "begun": self.begun and [self.begun.size, self.begun.version],
            "marks": {name: [mark.length, mark.crc] for name, mark in self.marks.items()},
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Commit:
        """What `to_json` made. Raises KeyError, TypeError or ValueError for anything else."""
        commit = cls(
            end=Position(*_numbers(entry["end"])),
            scored=_number(entry["scored"]),
            set_aside=_number(entry["set_aside"]),
            bytes_lost=_number(entry["bytes_lost"]),
            finished=tuple(_finished(*shard) for shard in entry["finished"]),
            begun=None if entry["begun"] is None else _stat(*entry["begun"]),
            marks={name: Checkpoint(*_numbers(entry["marks"][name])) for name in APPEND_FILES},
        )
        if commit.end.shard < 0 or min(mark.length for mark in commit.marks.values()) < 0:
            raise ValueError("before the beginning")
        return commit


def _number(value: object) -> int:
    if type(value) is not int:  # a bool is an int too
        raise TypeError(f"{value!r} is no whole number")
    return value


def _numbers(values: Iterable[object]) -> list[int]:
    return [_number(value) for value in values]


def _finished(size: object, version: object, records: object) -> tuple[FileStat, int]:
    return _stat(size, version), _number(records)


def _stat(size: object, version: object) -> FileStat:
    return FileStat(_number(size), version if isinstance(version, str) else _number(version))


@dataclass(frozen=True)
class Entry:
    """One whole line of a journal: its one key, what stands under it (or a `Commit`), and the journal up to its end."""

    key: str  # "job", "commit" or "complete"
    value: Any
    end: Checkpoint


def entries(path: Path) -> Generator[Entry]:
    """The whole lines of the journal at `path`, one at a time; a torn last line, as a crash leaves it, is left out.

    Raises:
        ResumeError: a damaged line before the last, a whole one that says something else than a journal's lines do, or
            a journal of another format.
    """
    end = Checkpoint()
    damaged = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if damaged:
                raise ResumeError(f"{path}: line {damaged} is damaged", hints=(Hint.RESTART,))
            end = Checkpoint(end.length + len(line), crc32c(line, end.crc))
            try:
                key, value = _parsed(line)
            except ValueError:
                damaged = number
                continue
            yield Entry(key, _understood(path, number, key, value), end)


def _parsed(line: bytes) -> tuple[str, Any]:
    entry = json.loads(line)
    if not line.endswith(b"\n") or not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError("torn")
    key, value = entry.popitem()
    return str(key), value


def _understood(path: Path, number: int, key: str, value: Any) -> Any:
    """`value`, a commit as `Commit`. What stands here is whole, so if it is not understood no crash has torn it."""
    try:
        if (number == 1) != (key == "job"):
            raise ValueError("the job is the first line")
        if key == "commit":
            return Commit.from_json(value)
        _check_known(key, value)
    except (KeyError, TypeError, ValueError) as error:
        raise ResumeError(f"{path}: line {number} is not what a job writes", hints=(Hint.RESTART,)) from error
    if key == "job" and value.get("format") != _FORMAT:
        raise ResumeError(
            f"{path}: line {number} has format {value.get('format')}, and this version goes on with {_FORMAT}",
            remedy="use the version that began it",
            hints=(Hint.RESTART,),
        )
    return value


def _check_known(key: str, value: Mapping[str, Any]) -> None:
    kinds: dict[str, type] = {"quarantined": int} if key == "complete" else {"options": dict, "shards": list}
    if key not in ("job", "complete") or not all(isinstance(value[name], kind) for name, kind in kinds.items()):
        raise ValueError(key)


def job_line(options: Mapping[str, Any], shards: Sequence[str]) -> bytes:
    """The first line of a journal."""
    return line("job", {"format": _FORMAT, "options": options, "shards": shards})


def line(key: str, value: Any) -> bytes:
    """One line of a journal."""
    return json.dumps({key: value}, separators=(",", ":")).encode() + b"\n"
