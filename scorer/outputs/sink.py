"""What a job writes to: append, commit, complete, and what a resumed job finds there.

A new kind of output is one module: a class with these methods, and a function that opens it, registered with
`scorer.outputs.open.register_sink`. tests/scorer/outputs/toy_sink.py is a short one, whose appends are no bytes;
every kind goes through tests/scorer/outputs/test_conformance.py, one that is not resumable as far as that goes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, BinaryIO, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.evaluation.duplicates import id_keys
from scorer.inputs.batching import Quarantined
from scorer.inputs.position import Position
from scorer.inputs.source import FileStat, Source
from scorer.kernels.packed import PackedStrings
from scorer.outputs.append import Extent
from scorer.outputs.row_format import RowFormat

ResumePolicy: TypeAlias = Literal["refuse", "resume", "restart"]
"""What to do about an unfinished earlier run. One that committed nothing is no obstacle under any of them."""

Kept: TypeAlias = Literal["quarantine", "ids", "hits"]
"""What a sink keeps beside the rows: bad records as JSON lines, 8 bytes an id, metric records."""


@dataclass(frozen=True)
class ShardId:
    """A shard, however it is read. canonical: its address, which holds in any folder."""

    canonical: str
    stat: FileStat


def shard_id(source: Source) -> ShardId:
    """Raises InputError where its address holds nowhere else."""
    return ShardId(source.canonical, source.stat)


@dataclass(frozen=True)
class JobKey:
    """What makes two runs the same job: everything that decides the bytes of the rows."""

    options: Mapping[str, Any]
    shards: tuple[ShardId, ...]


@dataclass(frozen=True)
class Chunk:
    """n predicted videos in input order, and the bad records met among them.

    ids: n. labels: int64 (n, k), best first. scores: float32 (n, k), in [0, 1].
    metric_records: of the videos whose labels are known (scorer/evaluation/metrics.py); may be empty.
    end: where to continue after it. finished: index and number of records of every shard that ended within it.
    unknown_labels: true labels of these videos that the model does not know.
    embeddings: float32 (n, width), where the job asks for them.
    consumed: of the compressed shard in which `end` is, the bytes read by then, where they are known.
    made: bytes that were made of it once, for `rows` and `kept`.
    """

    ids: PackedStrings
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    metric_records: bytes
    quarantined: Sequence[Quarantined]
    end: Position
    finished: Sequence[tuple[int, int]]
    unknown_labels: int = 0
    embeddings: NDArray[np.float32] | None = None
    consumed: int | None = None
    made: dict[object, bytes] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, row_format: RowFormat) -> bytes:
        """Its rows. They are made once, by a thread that predicts where some do. Raises as `RowFormat.rows`."""
        return self._once(row_format, lambda: row_format.rows(self.ids, self.labels, self.scores))

    @property
    def bytes_lost(self) -> int:
        return sum(bad.bytes_lost for bad in self.quarantined)

    def kept(self, what: Kept) -> bytes:
        """What a sink keeps of it beside the rows."""
        if what == "ids":
            return self._once(what, lambda: id_keys(self.ids))
        if what == "hits":
            return self.metric_records
        return b"".join(json.dumps(asdict(bad)).encode() + b"\n" for bad in self.quarantined)

    def _once(self, what: object, make: Callable[[], bytes]) -> bytes:
        if what not in self.made:
            self.made[what] = make()
        return self.made[what]


def joined_embeddings(parts: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    """Those of some chunks as one array; None where there are none. A chunk without a video may have none."""
    found = [part for part in parts if part is not None]
    return np.concatenate(found) if found else None


@dataclass(frozen=True)
class Commit:
    """How far a job is, and all that is needed to continue from there.

    end: the next record. finished: the shards completed since the commit before, in order, each with its number of
    records. partial: the shard that `end` lies within, None where it lies between shards.
    """

    end: Position
    scored: int = 0
    quarantined: int = 0
    bytes_lost: int = 0
    finished: tuple[tuple[FileStat, int], ...] = ()
    partial: FileStat | None = None
    unknown_labels: int = 0


class Sink(Protocol):
    """One job's hold on its output. Every method raises OutputError where it cannot be written."""

    @property
    def resumable(self) -> bool:
        """Whether what is committed outlives this process."""

    @property
    def quarantine_place(self) -> str:
        """Where the quarantined records are listed once the job is complete, in words."""

    @property
    def last(self) -> Commit | None:
        """The newest commit, after which a resumed job continues; None before the first."""

    @property
    def finished(self) -> Sequence[tuple[FileStat, int]]:
        """Every finished shard that was committed, in input order, with its number of records."""

    @property
    def embeddings(self) -> tuple[str, Extent] | None:
        """Once sealed, the file of embeddings: its name without a folder, its size and checksum; None for none."""

    @property
    def completed(self) -> Mapping[str, Any] | None:
        """The completion record once there is one. Where a resumed job finds one, all it has to do is to complete."""

    def append(self, chunk: Chunk) -> None:
        """Take what comes next; nothing of it counts before the next commit. Where this raises, it took nothing or
        can take nothing more.
        """

    def commit(self, commit: Commit) -> None:
        """Make everything appended so far last."""

    def kept(self, what: Kept) -> AbstractContextManager[BinaryIO]:
        """What was kept beside the rows so far, to read: a file of the system's, since NumPy reads its descriptor.

        "hits" and "quarantine" only where `resumable`; of a part nothing, since whoever merges the parts counts.
        """

    def seal(self) -> Extent:
        """Called once everything is committed: no more rows come. The size and checksum of the whole output."""

    def complete(self, record: Mapping[str, Any]) -> None:
        """Put the output in its place and `record` beside it. After a crash it is called again, with `completed`."""

    def discard(self) -> None:
        """Let nothing be left of this job; an older output stays as it is."""
