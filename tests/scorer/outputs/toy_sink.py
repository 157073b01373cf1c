"""A second kind of sink, as one file: row groups of arrays in memory, behind outputs such as toy://name.

Nothing of it is bytes with a checksum; a column store is written in the same way.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scorer.errors import ResumeError
from scorer.inputs.source import FileStat
from scorer.outputs.append import Extent
from scorer.outputs.open import register_sink
from scorer.outputs.row_format import RowFormat
from scorer.outputs.sink import Chunk, Commit, JobKey, Kept, ResumePolicy


@dataclass(frozen=True)
class RowGroup:
    """Some rows, column by column."""

    ids: tuple[bytes, ...]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass
class ToyWork:
    """What an unfinished job has committed."""

    key: JobKey
    groups: list[RowGroup] = field(default_factory=list)
    kept: dict[Kept, bytes] = field(default_factory=lambda: {"quarantine": b"", "ids": b"", "hits": b""})
    last: Commit | None = None
    finished: list[tuple[FileStat, int]] = field(default_factory=list)
    completed: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Table:
    """A whole output."""

    groups: tuple[RowGroup, ...]
    record: Mapping[str, Any]


WORK: dict[str, ToyWork] = {}
TABLES: dict[str, Table] = {}
_owned: set[str] = set()


class ToySink:
    """The attributes are those of `Sink`."""

    resumable = True
    embeddings = None
    quarantine_place = "in a toy box"

    def __init__(self, name: str, key: JobKey) -> None:
        self._name = name
        self._work = WORK.setdefault(name, ToyWork(key))
        self._new: list[Chunk] = []

    @property
    def last(self) -> Commit | None:
        return self._work.last

    @property
    def finished(self) -> Sequence[tuple[FileStat, int]]:
        return self._work.finished

    @property
    def completed(self) -> Mapping[str, Any] | None:
        return self._work.completed

    def append(self, chunk: Chunk) -> None:
        self._new.append(chunk)

    def commit(self, commit: Commit) -> None:
        work = self._work
        groups = [RowGroup(tuple(chunk.ids.split()), chunk.labels, chunk.scores) for chunk in self._new if len(chunk)]
        kept = {what: data + b"".join(_kept(self._new, what)) for what, data in work.kept.items()}
        WORK[self._name] = self._work = replace(
            work,
            groups=[*work.groups, *groups],
            kept=kept,
            last=commit,
            finished=[*work.finished, *commit.finished],
        )
        self._new = []

    def kept(self, what: Kept) -> AbstractContextManager[BinaryIO]:
        data = self._work.kept[what] + b"".join(_kept(self._new, what))
        return _as_file(data)

    def seal(self) -> Extent:
        return Extent(sum(group.labels.nbytes + group.scores.nbytes for group in self._work.groups))

    def complete(self, record: Mapping[str, Any]) -> None:
        self._work.completed = record
        TABLES[self._name] = Table(tuple(self._work.groups), record)
        WORK.pop(self._name, None)

    def discard(self) -> None:
        WORK.pop(self._name, None)


def _kept(chunks: Sequence[Chunk], what: Kept) -> Iterator[bytes]:
    return (chunk.kept(what) for chunk in chunks)


@contextmanager
def _as_file(data: bytes) -> Iterator[BinaryIO]:
    import tempfile

    with tempfile.TemporaryFile() as file:  # a real one, since NumPy reads it by its descriptor
        file.write(data)
        file.seek(0, io.SEEK_SET)
        yield file


@contextmanager
def open_toy(name: str, key: JobKey, row_format: RowFormat, policy: ResumePolicy) -> Iterator[ToySink]:
    if name in _owned:
        raise ResumeError(f"{name} is being written", remedy="wait for it to end")
    work = WORK.get(name)
    if policy == "restart" or (work and work.last is None):
        work = WORK.pop(name, None) and None
    if work and policy == "refuse":
        raise ResumeError(f"{name}: an earlier run stopped")
    if work and work.key.options != key.options:
        raise ResumeError(f"{name}: another job")
    _owned.add(name)
    try:
        yield ToySink(name, key)
    finally:
        _owned.discard(name)
        if name in WORK and WORK[name].last is None:
            del WORK[name]


register_sink("toy", open_toy)
