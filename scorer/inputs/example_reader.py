"""The record reader of TFRecord files of tf.Examples: by the compiled loop where there is one, by NumPy else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import Hint, RecordError, ShardError
from scorer.inputs.example import Decoder, label_fault, parse
from scorer.inputs.frames import frames_in
from scorer.inputs.layouts import ID_KEYS, LABELS_KEY
from scorer.inputs.long_record import shortened
from scorer.inputs.position import Position
from scorer.inputs.protobuf import InvalidExample, Row
from scorer.inputs.records import (
    BLOCK_BYTES,
    NOTHING,
    DecodedBlock,
    DecodedRun,
    Faults,
    Rows,
    Schema,
    Target,
)
from scorer.inputs.source import Reader, Source
from scorer.inputs.tfrecord import MAX_BLOCK_RECORDS, Block, FramedBlock, Shard
from scorer.kernels import loops
from scorer.kernels.limits import MAX_INPUTS
from scorer.kernels.loops import Decode
from scorer.kernels.packed import PackedStrings, RowSizes

ParseOne: TypeAlias = Callable[[str, bytes, Schema, int, int], Row | RecordError]
"""scorer.inputs.example.parse, or another one."""


class NativeDecoder:
    """Decodes with a compiled loop, from a file straight to rows; `parse_one` takes what it leaves out."""

    def __init__(self, schema: Schema, decode: Decode, parse_one: ParseOne = parse) -> None:
        self._schema, self._decode, self._parse_one = schema, decode, parse_one
        self._inputs = tuple((name.encode(), width) for name, width in schema.inputs.items())

    def decode(self, shard: Shard, position: Position, target: Target) -> DecodedRun:
        """Decode records from `position` on into `target`, as many as come before one of these ends: the shard, the
        target, some records of which one is irregular, what is whole and readable. A bad record's row is spoilt.
        """
        window = shard.window(position.offset)
        begin, last, end = (at - window.start for at in (position.offset, target.stop, window.stop))
        where = window.descriptor, begin, last, end, shard.block.room
        features, rows, sizes = target.features, (target.first, target.last), target.sizes
        found = self._decode(*where, self._inputs, tuple(features), *rows, sizes.matrix, target.label_bytes)
        run, start = DecodedRun(*found[:5]), found[5]
        if start is None:
            return run
        here = slice(rows[0], rows[0] + run.records)
        id_sizes, label_sizes, labelled, record_sizes = sizes.matrix[:, here]
        ids, labels = PackedStrings(run.ids, id_sizes).split(), PackedStrings(run.labels, label_sizes).split()
        stops = position.offset + np.cumsum(record_sizes)
        for row in np.flatnonzero(id_sizes == 0).tolist():
            size = int(record_sizes[row])
            offset = int(stops[row]) - size
            parsed = self._parse(shard, offset - window.start - start, size, position.record + row, offset)
            if not isinstance(parsed, Row):
                run.bad[row] = parsed
                continue
            if parsed.label_fault:
                at = position.record + row, offset
                run.label_faults[row] = label_fault(shard.address, parsed.label_fault, *at)
            for values, to in zip(parsed.floats, features, strict=True):
                to[rows[0] + row] = values
            ids[row], labels[row] = parsed.id, parsed.labels or b""
            id_sizes[row], label_sizes[row], labelled[row] = len(ids[row]), len(labels[row]), parsed.labels is not None
        run.ids, run.labels, run.labelled = b"".join(ids), b"".join(labels), bool(labelled.any())
        return run

    def _parse(self, shard: Shard, start: int, size: int, record: int, offset: int) -> Row | ShardError | RecordError:
        """What comes of the record of `size` bytes that starts at byte `start` of the block."""
        payload = shard.payload(start, size, record, offset)
        if not isinstance(payload, bytes):
            return payload
        return self._parse_one(shard.address, payload, self._schema, record, offset)


class NativeRows:
    """The records of a block from the compiled loop, as scorer.inputs.records.Rows. Each `decode` replaces them."""

    def __init__(self, schema: Schema, decoder: NativeDecoder) -> None:
        widths = schema.inputs.values()
        self._size = min(MAX_BLOCK_RECORDS, BLOCK_BYTES // max(4 * sum(widths), 1))
        self._decoder = decoder
        self._features = [np.empty((self._size, width), np.float32) for width in widths]
        self._sizes = RowSizes(self._size)
        self.bad: Faults = {}
        self.label_faults: Faults = {}

    def decode(self, shard: Shard, position: Position) -> NDArray[np.int64]:
        """Take the whole records from `position` on as far as there is room; returns DecodedBlock.bounds."""
        target = Target(self._features, self._sizes, 0, self._size, BLOCK_BYTES, shard.size)
        run = self._decoder.decode(shard, position, target)
        id_sizes, self.label_sizes, labelled, sizes = self._sizes.matrix[:, : run.records]
        self.ids, self.labels = PackedStrings(run.ids, id_sizes).split(), np.frombuffer(run.labels, np.uint8)
        self.labelled, self.bad, self.label_faults = labelled.astype(bool), run.bad, run.label_faults
        return np.cumsum([0, *sizes])

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        for values, to in zip(self._features, rows, strict=True):
            to[...] = values[first:last]
        return True


def native_decoder(schema: Schema) -> NativeDecoder | None:
    """None where there are no compiled loops, or more inputs than they serve."""
    decode = loops.active.decode
    return NativeDecoder(schema, decode) if decode and len(schema.inputs) <= MAX_INPUTS else None


class OneRow:
    """One record of the shard `address`, at `where`, or what is wrong with it, as scorer.inputs.records.Rows."""

    def __init__(self, address: str, parsed: Row | RecordError, where: tuple[int, int]) -> None:
        self.bad: Faults = {0: parsed} if isinstance(parsed, RecordError) else {}
        self._row = Row([], b"", None) if isinstance(parsed, RecordError) else parsed
        fault = self._row.label_fault
        self.label_faults: Faults = {0: label_fault(address, fault, *where)} if fault else {}
        self.ids, self.labelled = [self._row.id], np.array([self._row.labels is not None])
        self.labels = np.frombuffer(self._row.labels or b"", np.uint8)
        self.label_sizes = np.array([len(self.labels)], np.int64)

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        for values, to in zip(self._row.floats, rows, strict=True):
            to[0] = values
        return True


def _long_row(shard: Shard, schema: Schema, frames: FramedBlock) -> OneRow:
    """The one record of `frames`, which is longer than a block."""
    assert frames.long
    where, names = (frames.record, frames.offset), [name.encode() for name in (*schema.inputs, *ID_KEYS, LABELS_KEY)]
    parsed: Row | RecordError
    try:
        payload = shortened(shard.read, *frames.long, names, BLOCK_BYTES)
    except InvalidExample as invalid:
        parsed = RecordError(shard.address, str(invalid), record=where[0], offset=where[1], hints=(Hint.SKIP,))
    else:
        parsed = parse(shard.address, payload, schema, *where)
    return OneRow(shard.address, parsed, where)


class ExampleOpener:
    """What shards that are read one after the other share: buffers, and the layouts of records seen before."""

    def __init__(self, schema: Schema, *, beside_frames: bool) -> None:
        self.schema, self.unread_frames = schema, beside_frames
        self._native_rows: NativeRows | None = None
        self.buffer, self.decoder, self.native = Block(), Decoder(schema), native_decoder(schema)

    def __call__(self, source: Source, reader: Reader) -> ExampleReader:
        return ExampleReader(self, Shard(source, self.buffer, reader))

    def native_rows(self, native: NativeDecoder) -> NativeRows:
        """Made when first asked for: a batch that is decoded into needs none."""
        self._native_rows = self._native_rows or NativeRows(self.schema, native)
        return self._native_rows


class ExampleReader:
    """One open TFRecord file of tf.Examples: see scorer.inputs.records.RecordReader."""

    def __init__(self, opener: ExampleOpener, shard: Shard) -> None:
        self._opener, self._shard, self._unread_frames = opener, shard, opener.unread_frames
        self.check_unchanged, self.close = shard.check_unchanged, shard.close
        self.find_record = shard.finder if opener.native else None

    @property
    def size(self) -> int:
        return self._shard.size

    def decode_into(self, position: Position, target: Target) -> DecodedRun:
        native = self._opener.native
        if native is None:
            return NOTHING
        run = native.decode(self._shard, position, target)
        run.unread_frames = self._unread_frames
        return run

    def block(self, position: Position) -> DecodedBlock:
        return self._native_block(position) or self._numpy_block(position)

    def _native_block(self, position: Position) -> DecodedBlock | None:
        """None where there is nothing for the compiled loop: no record, or none that is whole."""
        shard, native = self._shard, self._opener.native
        if native is None or position.offset >= shard.size:
            return None
        rows = self._opener.native_rows(native)
        bounds = rows.decode(shard, position)
        last = position.offset + int(bounds[-1]) == shard.size
        if last:
            shard.check_unchanged()
        where = position.shard, shard.size, position.record, position.offset
        found = DecodedBlock(*where, bounds, last, None, rows, self._unread_frames)
        return found if len(found) else None

    def _numpy_block(self, position: Position) -> DecodedBlock:
        shard = self._shard
        frames = shard.frames(position.offset, position.record)
        rows: Rows
        if frames.long:
            rows = _long_row(shard, self._opener.schema, frames)
        else:
            rows = self._opener.decoder.decode(shard.address, frames)
        if frames.last:
            shard.check_unchanged()
        where = position.shard, shard.size, frames.record, frames.offset
        return DecodedBlock(*where, frames.bounds, frames.last, frames.lost, rows, self._unread_frames)


class _Examples:
    """The format of YouTube-8M's video-level shards."""

    def recognises(self, head: bytes) -> bool:
        return True  # and say what is wrong with it

    def opener(self, schema: Schema) -> ExampleOpener:
        return ExampleOpener(schema, beside_frames=False)


class _ExamplesBesideFrames:
    """The format of shards that have frames and the means of them: the means are read."""

    def recognises(self, head: bytes) -> bool:
        """By the first record."""
        return frames_in(head) == (True, True)

    def opener(self, schema: Schema) -> ExampleOpener:
        return ExampleOpener(schema, beside_frames=True)


EXAMPLES, EXAMPLES_BESIDE_FRAMES = _Examples(), _ExamplesBesideFrames()
