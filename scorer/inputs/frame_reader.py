"""The record reader of TFRecord files of frame-level tf.SequenceExamples: a record's features are its frames' means."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scorer.errors import Hint, RecordError, ShardError
from scorer.inputs.example import label_fault, parse
from scorer.inputs.frames import Parts, apart, begins_with_frames, mean_of_frames, only_data, take_apart
from scorer.inputs.layouts import ID_KEYS, LABELS_KEY, are_varints
from scorer.inputs.position import Position
from scorer.inputs.protobuf import Row
from scorer.inputs.records import BLOCK_BYTES, DecodedBlock, Faults, Schema, decode_nothing
from scorer.inputs.source import Reader, Source
from scorer.inputs.tfrecord import MAX_BLOCK_RECORDS, Block, FramedBlock, Shard, starts_with_record
from scorer.kernels.limits import MAX_ID_BYTES, MAX_LABEL_BYTES
from scorer.kernels.packed import PackedStrings

MAX_RECORD_BYTES = 64 << 20
"""A longer record is refused: it is held in memory. YouTube-8M's have at most 350 KB."""
_HEADER = 12
_BYTES_LIST, _INT64_LIST = 0x0A, 0x1A
_PRINTABLE = bytes(range(0x20, 0x7F))


class FrameRows:
    """The records of a block, as scorer.inputs.records.Rows, in buffers that the next block's take over."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.size = min(MAX_BLOCK_RECORDS, BLOCK_BYTES // max(4 * sum(schema.inputs.values()), 1))
        self._features = [np.empty((self.size, width), np.float32) for width in schema.inputs.values()]
        self.bad: Faults = {}
        self.label_faults: Faults = {}

    def decode(self, shard: Shard, frames: FramedBlock) -> None:
        """Take the records of `frames`, at most `size`."""
        self.bad, self.label_faults = dict(frames.bad), {}
        rows = [self._row(shard, frames, row) for row in range(len(frames))]
        labels = PackedStrings.of([row.labels or b"" for row in rows])
        self.ids, self.labelled = [row.id for row in rows], np.array([row.labels is not None for row in rows], bool)
        self.labels, self.label_sizes = np.frombuffer(labels.data, np.uint8), labels.sizes

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        for values, to in zip(self._features, rows, strict=True):
            to[...] = values[first:last]
        return True

    def _row(self, shard: Shard, frames: FramedBlock, row: int) -> Row:
        """Decode one record; its features are in the buffers then. Empty for a bad one, which is in `bad` then."""
        if row in self.bad:
            return _NO_ROW
        where = frames.location(row)
        payload = payload_of(shard, frames, row)
        if payload is None:
            reason = f"a frame-level record of more than {MAX_RECORD_BYTES:,} bytes"
            self.bad[row] = RecordError(shard.address, reason, record=where[0], offset=where[1], hints=(Hint.SKIP,))
            return _NO_ROW
        return self._common(payload, row) or self._irregular(shard, payload, row, where)

    def _common(self, payload: memoryview, row: int) -> Row | None:
        """A record of the form that every common writer gives; None for any other, and for one with anything wrong."""
        parts = take_apart(payload)
        if parts is None or (self._schema.level == "auto" and self._has_means(parts)):
            return None
        id, labels = id_of(parts), _labels(parts)
        if id is None or labels is False:
            return None
        counts: dict[str, int] = {}
        for name, to in zip(self._schema.inputs, self._features, strict=True):
            found = parts.frames(name)
            counts[name] = -1 if found is None else mean_of_frames(found, to[row])
        if min(counts.values(), default=1) < 0 or apart(counts):
            return None
        return Row([], id, labels)

    def _has_means(self, parts: Parts) -> bool:
        return any(name.encode() in parts.context for name in self._schema.inputs)

    def _irregular(self, shard: Shard, payload: memoryview, row: int, where: tuple[int, int]) -> Row:
        parsed = parse(shard.address, bytes(payload), self._schema, *where)
        if isinstance(parsed, RecordError):
            self.bad[row] = parsed
            return _NO_ROW
        if parsed.label_fault:
            self.label_faults[row] = label_fault(shard.address, parsed.label_fault, *where)
        for values, to in zip(parsed.floats, self._features, strict=True):
            to[row] = values
        return parsed


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


class FrameOpener:
    """What shards that are read one after the other share: buffers."""

    def __init__(self, schema: Schema) -> None:
        self._block, self._rows = Block(), FrameRows(schema)

    def __call__(self, source: Source, reader: Reader) -> FrameReader:
        return FrameReader(Shard(source, self._block, reader), self._rows)


class FrameReader:
    """One open TFRecord file of SequenceExamples: see scorer.inputs.records.RecordReader."""

    decode_into = staticmethod(decode_nothing)

    def __init__(self, shard: Shard, rows: FrameRows) -> None:
        self._shard, self._rows = shard, rows
        self.check_unchanged, self.close, self.find_record = shard.check_unchanged, shard.close, shard.finder

    @property
    def size(self) -> int:
        return self._shard.size

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


def frames_in(head: bytes) -> tuple[bool, bool]:
    """Whether the first record of a TFRecord file that starts with `head` has frames, and means beside them."""
    if not starts_with_record(head):
        return False, False
    (length,) = struct.unpack_from("<Q", head)
    return begins_with_frames(head[_HEADER : _HEADER + length], length)
