"""Bytes to examples: what a record format and its reader are.

A format is one file that gives a `RecordFormat`. Batching and all above it know of none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import RecordError, ShardError
from scorer.inputs.position import Position
from scorer.inputs.source import Reader, Source
from scorer.kernels.packed import RowSizes

BLOCK_BYTES = 2 << 20
"""About so much is read and decoded at once: many records together, few enough to stay in a core's cache meanwhile."""
HEAD_BYTES = 1 << 12
"""How many of a shard's first bytes a format is recognised by."""

Faults: TypeAlias = dict[int, ShardError | RecordError]
"""What is wrong with records, by row."""


Level: TypeAlias = Literal["auto", "video", "frame", "segment"]


@dataclass(frozen=True)
class Schema:
    """The features to read.

    inputs: name of each feature -> its width, in the order of the model.
    level: whether they are taken from the record itself, as means of its frames, or, with "auto", from what it has: the
        record itself where it has both. With "segment" each labelled segment of a record is read in its place.
    columns: of Parquet and Arrow files, what a feature's column is called where its name is another: feature -> column.
    """

    inputs: Mapping[str, int]
    level: Level = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)


class Rows(Protocol):
    """The decoded records of one block, n of them, good and bad.

    ids: n ids, UTF-8; b"" in bad ones.
    labels: uint8, the labels of all good records as packed varints (see scorer.kernels.packed.unpack_varints).
    label_sizes: int64 (n,) bytes of `labels` of each record.
    labelled: bool (n,) whether the record has labels at all, be they none.
    bad: errors by row; `copy` may add some.
    label_faults: what is wrong with the labels of records that are good without them, by row.
    """

    ids: list[bytes]
    labels: NDArray[np.uint8]
    label_sizes: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    bad: Faults
    label_faults: Faults

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        """Copy the features of rows first..last-1 to `rows`, one float32 (last - first, width) for each input.

        None of these rows may be bad. False if some turned out to be, and are in `bad` now; then `rows` is spoilt.
        """


@dataclass
class DecodedBlock:
    """One block of shard `index`, which has `size` bytes.

    record, offset: index and byte of the block's first record in the shard.
    bounds: int64 (n + 1,) from `offset` on, where each of its n records starts, and where the last one ends.
    last: whether the shard ends with this block. lost: why it does so before its last byte.
    unread_frames: whether there are frames too in a shard whose records have their means.
    consumed: of a compressed shard, how many of its bytes were read for it and all before; None of another.
    """

    index: int
    size: int
    record: int
    offset: int
    bounds: NDArray[np.int64]
    last: bool
    lost: ShardError | None
    rows: Rows
    unread_frames: bool = False
    consumed: int | None = None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def good(self, first: int, last: int) -> int:
        """Where the run of good rows from `first` on ends; at most `last`."""
        bad = self.rows.bad
        return next((row for row in range(first, last) if row in bad), last) if bad else last

    def position(self, row: int) -> Position:
        """Of the record of row `row`, which may be n."""
        return Position(self.index, self.record + row, self.offset + int(self.bounds[row]))

    def before(self, stop: int) -> DecodedBlock:
        """The part of it that starts before byte `stop`."""
        count = int(np.searchsorted(self.bounds[:-1], stop - self.offset))
        if count == len(self) and (self.lost is None or self.lost.offset < stop):
            return self
        return replace(self, bounds=self.bounds[: count + 1], last=False, lost=None)

    @property
    def end(self) -> Position:
        """Where what follows the block starts."""
        return Position(self.index + 1, 0, 0) if self.last else self.position(len(self))


@dataclass
class DecodedRun:
    """`records` records, one after the other, that have `size` bytes.

    ids, labels: those of all that are not bad, joined. labelled: whether one of these has labels at all.
    bad, label_faults: as in Rows. unread_frames, consumed: as in DecodedBlock.
    """

    records: int
    ids: bytes
    labels: bytes
    size: int
    labelled: bool
    bad: Faults = field(default_factory=dict)
    label_faults: Faults = field(default_factory=dict)
    unread_frames: bool = False
    consumed: int | None = None


NOTHING = DecodedRun(0, b"", b"", 0, False)


@dataclass(frozen=True)
class Target:
    """Where records are decoded to, and up to where.

    features: float32 (n, width) for each input. sizes: of n rows. first, last: the rows to fill are first..last-1.
    label_bytes: about how many bytes of labels to stop at. stop: the byte of the shard before which records start.
    """

    features: Sequence[NDArray[np.float32]]
    sizes: RowSizes
    first: int
    last: int
    label_bytes: int
    stop: int


def decode_nothing(position: Position, target: Target) -> DecodedRun:
    """The `RecordReader.decode_into` of a format that is decoded a block at a time alone."""
    return NOTHING


class RecordReader(Protocol):
    """One open shard. Its errors are InputErrors, except for those that it gives with the records."""

    @property
    def size(self) -> int:
        """The position's offset at its end; more than any before that is known."""

    def decode_into(self, position: Position, target: Target) -> DecodedRun:
        """Decode the records from `position` on straight into `target`; a bad record's row is spoilt.

        It ends where it must, and gives NOTHING where the next record is one for `block`; a format that has no such
        way always does.
        """

    def block(self, position: Position) -> DecodedBlock:
        """The records from `position` on: at least one, unless the shard ends there or the rest of it is lost.

        They take no more than BLOCK_BYTES of features, and are valid until the next call, here
        or of another reader of the same `Opener`.
        """

    @property
    def find_record(self) -> Callable[[int, int], int | None] | None:
        """Where the first record from one byte on and before another starts, by all appearances; None where none
        seems to. None in the place of it where records can only be read one after the other.
        """

    def check_unchanged(self) -> None: ...

    def close(self) -> None:
        """Close the source's reader too."""


Opener: TypeAlias = Callable[[Source, Reader], RecordReader]
"""Reads shards of one format for one schema; has what may be used again from shard to shard."""


class RecordFormat(Protocol):
    """A kind of shard."""

    def recognises(self, head: bytes) -> bool:
        """Whether a shard that starts with `head`, HEAD_BYTES or all that it has, is of this format."""

    def opener(self, schema: Schema) -> Opener: ...
