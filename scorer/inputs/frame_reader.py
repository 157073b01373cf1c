"""The record reader of TFRecord files of frame-level tf.SequenceExamples: a record's features are its frames' means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scorer.errors import Hint, RecordError, ShardError
from scorer.inputs.example import label_fault, parse
from scorer.inputs.example_reader import NativeDecoder
from scorer.inputs.frames import MEAN_PREFIX, Parts, apart, frames_in, mean_of_frames, only_data, take_apart
from scorer.inputs.layouts import ID_KEYS, LABELS_KEY, are_varints
from scorer.inputs.position import Position
from scorer.inputs.protobuf import Row
from scorer.inputs.records import BLOCK_BYTES, NOTHING, DecodedBlock, DecodedRun, Faults, Schema, Target
from scorer.inputs.source import Reader, Source
from scorer.inputs.tfrecord import MAX_BLOCK_RECORDS, Block, FramedBlock, Shard
from scorer.kernels import loops
from scorer.kernels.limits import MAX_ID_BYTES, MAX_INPUTS, MAX_LABEL_BYTES
from scorer.kernels.packed import PackedStrings

MAX_RECORD_BYTES = 64 << 20
"""A longer record is refused: it is held in memory. YouTube-8M's have at most 350 KB."""
_BYTES_LIST, _INT64_LIST = 0x0A, 0x1A
_PRINTABLE = bytes(range(0x20, 0x7F))


class FrameRows:
    """The records of a block, as scorer.inputs.records.Rows. Each `decode` replaces them."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.size = min(MAX_BLOCK_RECORDS, BLOCK_BYTES // max(4 * sum(schema.inputs.values()), 1))
        self.bad: Faults = {}
        self.label_faults: Faults = {}

    def decode(self, shard: Shard, frames: FramedBlock) -> None:
        """Take the records of `frames`, at most `size`."""
        self.bad, self.label_faults = dict(frames.bad), {}
        self._rows = [self._row(shard, frames, row) for row in range(len(frames))]
        labels = PackedStrings.of([row.labels or b"" for row in self._rows])
        self.ids = [row.id for row in self._rows]
        self.labelled = np.array([row.labels is not None for row in self._rows], bool)
        self.labels, self.label_sizes = np.frombuffer(labels.data, np.uint8), labels.sizes

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        for number, row in enumerate(self._rows[first:last]):
            for values, to in zip(row.floats, rows, strict=True):
                to[number] = values
        return True

    def _row(self, shard: Shard, frames: FramedBlock, row: int) -> Row:
        """Decode one record. Empty for a bad one, which is in `bad` then."""
        if row in self.bad:
            return _NO_ROW
        where = frames.location(row)
        payload = payload_of(shard, frames, row)
        parsed: Row | RecordError
        if payload is None:
            reason = f"a frame-level record of more than {MAX_RECORD_BYTES:,} bytes"
            parsed = RecordError(shard.address, reason, record=where[0], offset=where[1], hints=(Hint.SKIP,))
        else:
            parsed = frame_record(shard.address, payload, self._schema, *where)
        if isinstance(parsed, RecordError):
            self.bad[row] = parsed
            return _NO_ROW
        if parsed.label_fault:
            self.label_faults[row] = label_fault(shard.address, parsed.label_fault, *where)
        return parsed


def frame_record(path: str, payload: bytes | memoryview, schema: Schema, record: int, offset: int) -> Row | RecordError:
    """As scorer.inputs.example.parse, of a record that is a frame-level one by all appearances."""
    return _common(memoryview(payload), schema) or parse(path, bytes(payload), schema, record, offset)


def _common(payload: memoryview, schema: Schema) -> Row | None:
    """A record of the form that every common writer gives; None for any other, and for one with anything wrong."""
    parts = take_apart(payload)
    if parts is None or (schema.level == "auto" and any(name.encode() in parts.context for name in schema.inputs)):
        return None
    id, labels = id_of(parts), _labels(parts)
    if id is None or labels is False:
        return None
    floats, counts = [np.empty(width, np.float32) for width in schema.inputs.values()], dict[str, int]()
    for name, to in zip(schema.inputs, floats, strict=True):
        found = parts.frames(name)
        counts[name] = -1 if found is None else mean_of_frames(found, to)
    if min(counts.values(), default=1) < 0 or apart(counts):
        return None
    return Row([*floats], id, labels)


_NO_ROW = Row([], b"", None)


def payload_of(shard: Shard, frames: FramedBlock, row: int) -> memoryview | None:
    """None where there is too much of it."""
    if not frames.long:
        return frames.block.view[frames.starts[row] : frames.stops[row]]
    start, stop = frames.long
    return memoryview(shard.read(start, stop - start)) if stop - start <= MAX_RECORD_BYTES else None


def id_of(parts: Parts) -> bytes | None:
    """None where there is none, or one that only protobuf is to judge."""
    feature = next((parts.context[key] for name in ID_KEYS if (key := name.encode()) in parts.context), None)
    data = None if feature is None else only_data(feature, _BYTES_LIST)
    if not data or len(data) > MAX_ID_BYTES:
        return None
    id = bytes(data)
    return None if id.translate(None, _PRINTABLE) else id


def _labels(parts: Parts) -> bytes | Literal[False] | None:
    """As packed varints; None without any, False where only protobuf is to judge."""
    feature = parts.context.get(LABELS_KEY.encode())
    if feature is None:
        return None
    data = only_data(feature, _INT64_LIST)
    return bytes(data) if data is not None and len(data) <= MAX_LABEL_BYTES and are_varints(data) else False


def native_frames(schema: Schema) -> NativeDecoder | None:
    """None where there are no compiled loops, or inputs that these do not serve."""
    decode = loops.active.decode_bare_frames if schema.level == "auto" else loops.active.decode_frames
    means = all(name.startswith(MEAN_PREFIX) for name in schema.inputs)
    served = means and len(schema.inputs) <= MAX_INPUTS
    return NativeDecoder(schema, decode, frame_record) if decode and served else None


class FrameOpener:
    """What shards that are read one after the other share: buffers."""

    def __init__(self, schema: Schema) -> None:
        self._block, self._rows, self._native = Block(), FrameRows(schema), native_frames(schema)

    def __call__(self, source: Source, reader: Reader) -> FrameReader:
        native = self._native if reader.descriptor is not None else None
        return FrameReader(Shard(source, self._block, reader), self._rows, native)


class FrameReader:
    """One open TFRecord file of SequenceExamples: see scorer.inputs.records.RecordReader.

    native: for local files alone. Other sources are slower than Python is here, and a stream with a record that is
    longer than what is staged would be read twice.
    """

    def __init__(self, shard: Shard, rows: FrameRows, native: NativeDecoder | None) -> None:
        self._shard, self._rows, self._native = shard, rows, native
        self.check_unchanged, self.close, self.find_record = shard.check_unchanged, shard.close, shard.finder

    @property
    def size(self) -> int:
        return self._shard.size

    def decode_into(self, position: Position, target: Target) -> DecodedRun:
        return self._native.decode(self._shard, position, target) if self._native else NOTHING

    def block(self, position: Position) -> DecodedBlock:
        shard = self._shard
        frames = _at_most(shard.frames(position.offset, position.record), self._rows.size)
        self._rows.decode(shard, frames)
        if frames.last:
            shard.check_unchanged()
        where = position.shard, shard.size, frames.record, frames.offset
        return DecodedBlock(*where, frames.bounds, frames.last, frames.lost, self._rows)


def _at_most(frames: FramedBlock, count: int) -> FramedBlock:
    """The first `count` of them."""
    if len(frames) <= count:
        return frames
    bad: dict[int, ShardError | RecordError] = {row: fault for row, fault in frames.bad.items() if row < count}
    return replace(frames, bounds=frames.bounds[: count + 1], last=False, bad=bad)


class _FrameLevel:
    """The format of YouTube-8M's frame-level shards, and of others that have no means of their frames."""

    def recognises(self, head: bytes) -> bool:
        """By the first record."""
        return frames_in(head) == (True, False)

    def opener(self, schema: Schema) -> FrameOpener:
        return FrameOpener(schema)


FRAMES = _FrameLevel()
