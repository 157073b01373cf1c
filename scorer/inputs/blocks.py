"""Shards to decoded blocks: what a batch is filled from, whether it was decoded in this process or in another."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import RecordError, ShardError
from scorer.inputs.example import Decoder, Schema, parse
from scorer.inputs.position import Position
from scorer.inputs.protobuf import Row
from scorer.inputs.source import Source
from scorer.inputs.tfrecord import BLOCK_BYTES, MAX_BLOCK_RECORDS, Block, Shard
from scorer.kernels import loops
from scorer.kernels.limits import MAX_INPUTS
from scorer.kernels.loops import Decode
from scorer.kernels.packed import PackedStrings, RowSizes


class Rows(Protocol):
    """The records of a block, as scorer.inputs.example.Records has them."""

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


Bad: TypeAlias = dict[int, ShardError | RecordError]
"""What is wrong with the bad records, by row."""


@dataclass
class Run:
    """`records` records, one after the other, that have `size` bytes.

    ids, labels: those of all that are not bad, joined. labelled: whether one of these has `labels` at all.
    """

    records: int
    ids: bytes
    labels: bytes
    size: int
    labelled: bool
    bad: Bad = field(default_factory=dict)


class NativeDecoder:
    """Decodes with the compiled loop, from a file straight to rows; what it leaves out goes through protobuf."""

    def __init__(self, schema: Schema, decode: Decode) -> None:
        self._schema, self._decode = schema, decode
        self._inputs = tuple((name.encode(), width) for name, width in schema.inputs.items())

    def decode(
        self,
        shard: Shard,
        place: Position,
        features: Sequence[NDArray[np.float32]],
        sizes: RowSizes,
        rows: tuple[int, int],
        label_bytes: int,
    ) -> Run:
        """Decode records from `place` on into rows[0]..rows[1]-1, as many as come before one of these ends: the shard,
        the rows, `label_bytes` of labels, some records of which one is irregular, what is whole and readable.

        features: float32 (n, width) for each input. sizes: of n rows. A bad record's row is spoilt.
        """
        assert shard.descriptor is not None
        where = shard.descriptor, place.offset, shard.size, shard.block.room
        found = self._decode(*where, self._inputs, tuple(features), *rows, sizes, label_bytes)
        run, start = Run(*found[:5]), found[5]
        if start is None:
            return run
        here = slice(rows[0], rows[0] + run.records)
        id_sizes, label_sizes, labelled, record_sizes = sizes.matrix[:, here]
        ids, labels = PackedStrings(run.ids, id_sizes).split(), PackedStrings(run.labels, label_sizes).split()
        stops = place.offset + np.cumsum(record_sizes)
        for row in np.flatnonzero(id_sizes == 0).tolist():
            size = int(record_sizes[row])
            offset = int(stops[row]) - size
            parsed = self._parse(shard, offset - start, size, place.record + row, offset)
            if not isinstance(parsed, Row):
                run.bad[row] = parsed
                continue
            for values, to in zip(parsed.floats, features, strict=True):
                to[rows[0] + row] = values
            ids[row], labels[row] = parsed.id, parsed.labels or b""
            id_sizes[row], label_sizes[row], labelled[row] = len(ids[row]), len(labels[row]), parsed.labels is not None
        run.ids, run.labels, run.labelled = b"".join(ids), b"".join(labels), bool(labelled.any())
        return run

    def _parse(self, shard: Shard, start: int, size: int, record: int, offset: int) -> Row | ShardError | RecordError:
        """What protobuf makes of the record of `size` bytes that starts at byte `start` of the block."""
        payload = shard.payload(start, size, record, offset)
        if not isinstance(payload, bytes):
            return payload
        return parse(shard.address, payload, self._schema.inputs, record, offset)


class NativeBlock:
    """The records of a block from the compiled loop, as scorer.inputs.example.Records. Each `decode` replaces them."""

    def __init__(self, schema: Schema, decoder: NativeDecoder) -> None:
        widths = schema.inputs.values()
        self._size = min(MAX_BLOCK_RECORDS, BLOCK_BYTES // max(4 * sum(widths), 1))  # they fit a worker's slot
        self._decoder = decoder
        self._features = [np.empty((self._size, width), np.float32) for width in widths]
        self._sizes = RowSizes(self._size)

    def decode(self, shard: Shard, place: Position) -> NDArray[np.int64]:
        """Take the whole records from `place` on as far as there is room; returns Decoded.places."""
        run = self._decoder.decode(shard, place, self._features, self._sizes, (0, self._size), BLOCK_BYTES)
        id_sizes, self.label_sizes, labelled, sizes = self._sizes.matrix[:, : run.records]
        self.ids, self.labels = PackedStrings(run.ids, id_sizes).split(), np.frombuffer(run.labels, np.uint8)
        self.labelled, self.bad = labelled.astype(bool), run.bad
        return np.cumsum([0, *sizes])

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        for values, to in zip(self._features, rows, strict=True):
            to[...] = values[first:last]
        return True


def native_decoder(schema: Schema) -> NativeDecoder | None:
    """None where there are no compiled loops, or more inputs than they serve."""
    decode = loops.active.decode
    return NativeDecoder(schema, decode) if decode and len(schema.inputs) <= MAX_INPUTS else None


def decoded(shards: Iterable[tuple[int, Source]], schema: Schema, start: Position) -> Generator[Decoded]:
    """The blocks of `shards`, pairs of index and source, in order; each is valid until the next one is asked for.

    A shard of the index of `start` is read from there on. Raises InputError.
    """
    decoder, block, native = Decoder(schema), Block(), native_decoder(schema)
    rows = NativeBlock(schema, native) if native else None
    for index, source in shards:
        place = start if index == start.shard else Position(index, 0, 0)
        with Shard(source, block) as shard:
            while place.shard == index:
                found = (rows and decode_native(shard, rows, place)) or decode(shard, decoder, place)
                yield found
                place = found.end


def decode_native(shard: Shard, rows: NativeBlock, place: Position) -> Decoded | None:
    """As `decode`, by the compiled loop; None if there is nothing for it: no record, or none that is whole."""
    if shard.descriptor is None or place.offset >= shard.size:
        return None
    places = rows.decode(shard, place)
    last = place.offset + int(places[-1]) == shard.size
    if last:
        shard.check_unchanged()
    found = Decoded(place.shard, shard.size, place.record, place.offset, places, last, None, rows)
    return found if len(found) else None


def decode(shard: Shard, decoder: Decoder, place: Position) -> Decoded:
    """The block from `place` on, valid until the next one is read. Raises InputError."""
    frames = shard.frames(place.offset, place.record)
    rows = decoder.decode(shard.address, frames)
    if frames.last:
        shard.check_unchanged()
    return Decoded(place.shard, shard.size, frames.record, frames.offset, frames.places, frames.last, frames.lost, rows)
