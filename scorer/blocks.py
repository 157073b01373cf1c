"""Shards to decoded blocks: what a batch is filled from, whether it was decoded in this process or in another."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scorer.errors import RecordError, ShardError
from scorer.examples import Decoder, Schema
from scorer.framing import Block, Shard


@dataclass(frozen=True)
class Position:
    """The next unread record: index of its shard, its index there, and the byte at which it starts."""

    shard: int
    record: int
    offset: int


class Rows(Protocol):
    """The records of a block, as scorer.examples.Records has them."""

    ids: list[bytes]
    labels: NDArray[np.uint8]
    label_sizes: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    bad: dict[int, ShardError | RecordError]

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool: ...


@dataclass
class Decoded:
    """One block of shard `index`, which has `size` bytes.

    record, offset: index and byte of the block's first record in the shard.
    places: where, from `offset` on, each of its n records starts, and behind them where the next one starts: n + 1.
    last: whether the shard ends with this block. lost: why it does so before its last byte.
    """

    index: int
    size: int
    record: int
    offset: int
    places: NDArray[np.int64]
    last: bool
    lost: ShardError | None
    rows: Rows

    def __len__(self) -> int:
        return len(self.places) - 1

    def good(self, first: int, last: int) -> int:
        """Where the run of good rows from `first` on ends; at most `last`."""
        bad = self.rows.bad
        return next((row for row in range(first, last) if row in bad), last) if bad else last

    def position(self, row: int) -> Position:
        """Of the record of row `row`, which may be n."""
        return Position(self.index, self.record + row, self.offset + int(self.places[row]))

    @property
    def end(self) -> Position:
        """Where what follows the block starts."""
        return Position(self.index + 1, 0, 0) if self.last else self.position(len(self))


def decoded(shards: Iterable[tuple[int, str]], schema: Schema, start: Position) -> Generator[Decoded]:
    """The blocks of `shards`, pairs of index and path, in order; each is valid until the next one is asked for.

    A shard of the index of `start` is read from there on. Raises InputError.
    """
    decoder, block = Decoder(schema), Block()
    for index, path in shards:
        place = start if index == start.shard else Position(index, 0, 0)
        with Shard(path, block) as shard:
            while place.shard == index:
                found = decode(shard, decoder, place)
                yield found
                place = found.end


def decode(shard: Shard, decoder: Decoder, place: Position) -> Decoded:
    """The block from `place` on, valid until the next one is read. Raises InputError."""
    frames = shard.frames(place.offset, place.record)
    rows = decoder.decode(shard.path, frames)
    if frames.last:
        shard.check_unchanged()
    return Decoded(place.shard, shard.size, frames.record, frames.offset, frames.places, frames.last, frames.lost, rows)
