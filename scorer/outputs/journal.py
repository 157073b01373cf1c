"""What a job remembers of itself on disk: a journal that says how far its growing files count.

The journal is JSON, one object a line: first the job, then a line per commit, then, where the rows are packed in the
end, one of what came of that, at last the completion record. Each line is flushed to the disk before the next is
written, so that only the last one can be torn. The last entry of a line, "crc32c", is the CRC32C of all bytes of the
journal before it: no line counts that was changed, moved or lost one before it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from scorer.errors import Hint, ResumeError
from scorer.inputs.position import Position
from scorer.inputs.source import FileStat
from scorer.outputs.append import NO_BYTES, Extent
from scorer.outputs.own import open_own
from scorer.outputs.sink import Commit, JobKey
from scorer.outputs.typed import count_of, stat_of

APPEND_FILES = ("rows", "quarantine", "ids", "hits")
EMBEDDINGS = "embeddings"
"""The file that grows beside these where a job asks for it; the journal's key for what came of it too."""
EMBEDDINGS_FILE = "embeddings_file"
"""The option of such a job that says where it is to go."""
_FORMAT = 2  # of the journal; another is refused
_SEAL = re.compile(rb',"crc32c":"([0-9a-f]{8})"}\n$')
_LONGEST_LINE = 1 << 28
"""Bytes: a million shards with addresses of 256. A longer line, which no job writes, must not fill the memory."""
_START = b'{"'  # of every line
_PIECE = 1 << 20


@dataclass(frozen=True)
class Saved:
    """A commit on disk. files: how far each growing file counts. end: how far the journal does, itself included."""

    commit: Commit
    files: Mapping[str, Extent]
    end: Extent


@dataclass
class Journal:
    """What an earlier run wrote, up to its last whole line.

    options, shards: the job. saved: the newest commit. before: the newest one that does not lie within the shard which
    `saved` lies within. finished: all finished shards. packed: of a format that is packed in the end, its output.
    embeddings: the file of these, as it is in the end.
    completed: the completion record, if it came so far.
    started, end: how far the journal counts after its first line, and in all.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    shards: Sequence[object] = ()
    saved: Saved | None = None
    before: Saved | None = None
    finished: list[tuple[FileStat, int]] = field(default_factory=list)
    packed: Extent | None = None
    embeddings: Extent | None = None
    completed: Mapping[str, Any] | None = None
    started: Extent = NO_BYTES
    end: Extent = NO_BYTES

    def add(self, key: str, value: Any) -> None:
        """Take one more line, which ends at `end`. Raises KeyError, TypeError or ValueError for what no job writes."""
        if (self.started == NO_BYTES) != (key == "job") or self.completed is not None:
            raise ValueError("out of order")
        if key == "job":
            self.options, self.shards, self.started = _job(value["options"]), [*value["shards"]], self.end
        elif key == "commit":
            self._commit(Saved(_commit(value), _files(value["marks"]), self.end))
        elif key == "packed":
            self.packed = _extent(*value)
        elif key == EMBEDDINGS:
            self.embeddings = _extent(*value)
        elif key == "complete" and isinstance(value, dict):
            self.completed = value
        else:
            raise ValueError(key)

    def _commit(self, new: Saved) -> None:
        old = self.saved
        if old and (old.commit.partial is None or old.commit.end.shard < new.commit.end.shard):
            self.before = old
        self.saved = new
        self.finished += new.commit.finished

    def is_consistent(self) -> bool:
        """Whether lines that are each whole belong together."""
        if self.saved is None:
            return self.completed is None
        commit, files = self.saved.commit, self.saved.files
        records = sum(number for _, number in self.finished) + commit.end.record
        return (
            commit.end.shard + (commit.partial is not None) <= len(self.shards)
            and commit.end.shard == len(self.finished)
            and commit.scored + commit.quarantined == records
            and files["ids"].length == 8 * commit.scored
            and files["rows"].length >= commit.scored
            and (EMBEDDINGS in files) == (EMBEDDINGS_FILE in self.options)
            and (EMBEDDINGS not in files or files[EMBEDDINGS].length >= 4 * commit.scored)
            and (files["quarantine"].length > 0) == (commit.quarantined > 0)
        )


def read_journal(path: Path, most: int | None = None) -> Journal:
    """The whole lines of the journal at `path`; a torn last line, as a crash leaves it, is left out.

    most: lines to look at, where the first ones will do.

    Raises:
        ResumeError: a damaged line before the last, a whole one that says something else than a journal's lines do, or
            a journal of another format.
        OSError: it cannot be read, or is not this user's own; FileNotFoundError where there is none.
    """
    journal, damaged = Journal(), 0
    with _opened(path) as file:
        for number, line in enumerate(islice(_lines(file), most), 1):
            if damaged:
                raise ResumeError(f"{path}: line {damaged} is damaged", hints=(Hint.RESTART,))
            try:
                if number == 1:
                    _check_format(path, line)
                key, value = _parsed(line, journal.end)
            except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
                damaged = number
                continue
            journal.end = journal.end.add(line)
            _add(journal, path, number, key, value)
    return journal


def _check_format(path: Path, line: bytes) -> None:
    """Raise ResumeError where the first line says another format; some error where it says none."""
    if (found := json.loads(line)["job"].get("format")) != _FORMAT:
        raise ResumeError(
            f"{path}: line 1 has format {found}, and this version resumes {_FORMAT}",
            remedy="use the version that began it",
            hints=(Hint.RESTART,),
        )


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    with open(open_own(path, os.O_RDONLY), "rb") as file:
        yield file


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Its lines, of one that no job writes only the start; an empty one where such a line does not end."""
    while start := file.readline(len(_START)):
        line = start if start != _START else start + file.readline(_LONGEST_LINE)
        yield line
        if not line.endswith(b"\n") and not _skip_line(file):
            yield b""
            return


def _skip_line(file: BinaryIO) -> bool:
    """Go to the next line or the end; False where that does not come soon."""
    for _ in range(_LONGEST_LINE // _PIECE):
        piece = file.readline(_PIECE)
        if not piece or piece.endswith(b"\n"):
            return True
    return False


def _parsed(line: bytes, before: Extent) -> tuple[str, Any]:
    """Key and value of a line, which `before` stands before. Raises ValueError for a torn or damaged one."""
    seal = _SEAL.search(line)
    if seal is None or int(seal[1], 16) != before.add(line[: seal.start()]).crc:
        raise ValueError("torn")
    entry = json.loads(line[: seal.start()] + b"}")
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError("another form")
    key, value = entry.popitem()
    return str(key), value


def _add(journal: Journal, path: Path, number: int, key: str, value: Any) -> None:
    """What stands here is whole, so if it is not understood no crash has torn it."""
    try:
        journal.add(key, value)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ResumeError(f"{path}: line {number} is not what a job writes", hints=(Hint.RESTART,)) from error


def sealed(line: bytes, before: Extent) -> bytes:
    """A line of the functions below as it stands in a journal, after what `before` describes."""
    body = line.removesuffix(b"}\n")
    return body + b',"crc32c":"%08x"}\n' % before.add(body).crc


def job_line(key: JobKey) -> bytes:
    """The first line of a journal."""
    shards = [shard.canonical for shard in key.shards]
    return _line("job", {"format": _FORMAT, "options": key.options, "shards": shards})


def commit_line(commit: Commit, files: Mapping[str, Extent]) -> bytes:
    """The line of a commit at which each of `files` is that long."""
    return _line(
        "commit",
        {
            "end": [commit.end.shard, commit.end.record, commit.end.offset],
            "scored": commit.scored,
            "set_aside": commit.quarantined,
            "bytes_lost": commit.bytes_lost,
            "finished": [[stat.size, stat.version, records] for stat, records in commit.finished],
            "begun": commit.partial and [commit.partial.size, commit.partial.version],
            **({"unknown_labels": commit.unknown_labels} if commit.unknown_labels else {}),
            "marks": {name: [file.length, file.crc] for name, file in files.items()},
        },
    )


def packed_line(output: Extent) -> bytes:
    """The line of an output that was packed from its rows and is flushed to the disk."""
    return _line("packed", [output.length, output.crc])


def embeddings_line(file: Extent) -> bytes:
    """The line of embeddings that are as they are to be, and flushed to the disk."""
    return _line(EMBEDDINGS, [file.length, file.crc])


def complete_line(record: Mapping[str, Any]) -> bytes:
    """The last line of a journal."""
    return _line("complete", record)


def _line(key: str, value: Any) -> bytes:
    return json.dumps({key: value}, separators=(",", ":")).encode() + b"\n"


def _job(options: object) -> Mapping[str, Any]:
    if not isinstance(options, dict):
        raise TypeError(f"{options!r} are no options")
    return options


def _commit(entry: Mapping[str, Any]) -> Commit:
    return Commit(
        end=Position(*map(count_of, entry["end"])),
        scored=count_of(entry["scored"]),
        quarantined=count_of(entry["set_aside"]),
        bytes_lost=count_of(entry["bytes_lost"]),
        finished=tuple((stat_of(size, version), count_of(records)) for size, version, records in entry["finished"]),
        partial=None if entry["begun"] is None else stat_of(*entry["begun"]),
        unknown_labels=count_of(entry.get("unknown_labels", 0)),
    )


def _files(marks: Mapping[str, Any]) -> dict[str, Extent]:
    names = [*APPEND_FILES, EMBEDDINGS] if EMBEDDINGS in marks else APPEND_FILES
    return {name: _extent(*marks[name]) for name in names}


def _extent(length: object, crc: object) -> Extent:
    return Extent(count_of(length), count_of(crc))
