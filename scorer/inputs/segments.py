"""The record reader of labelled segments: each of a frame-level record's is a row, the mean of its few frames.

The segments of a record are `segment_start_times`, `segment_end_times`, `segment_labels` and `segment_scores` in its
context, one item a judgement; those of one start are one segment. Its row's id is `id:start`, its labels are those that
were judged to be there. A record without segments gives no row.

A row's position is the first byte of its record and as many bytes more as there are rows before it in the record, so
that reading resumes in the middle of one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scorer.errors import Hint, RecordError, ShardError
from scorer.inputs.example import parse
from scorer.inputs.frame_reader import id_of, payload_of
from scorer.inputs.frames import Parts, apart, mean_of_frames, only_data, take_apart
from scorer.inputs.layouts import are_varints
from scorer.inputs.position import Position
from scorer.inputs.records import BLOCK_BYTES, DecodedBlock, Faults, Schema, decode_nothing
from scorer.inputs.source import Reader, Source
from scorer.inputs.tfrecord import MAX_BLOCK_RECORDS, Block, FramedBlock, Shard, starts_with_record
from scorer.inputs.wire import varint
from scorer.kernels.limits import MAX_ID_BYTES
from scorer.kernels.packed import PackedStrings, unpack_varints

MAX_SEGMENTS = 4000
"""Of a record; one with more is refused."""
_FRAMES_EACH = 5  # where no ends are given
_HEADER, _FOOTER = 12, 4
_FLOAT_LIST, _INT64_LIST = 0x12, 0x1A


class _Invalid(Exception):
    """Why a record's segments cannot be read."""


@dataclass
class _Segment:
    """Its frames first..last-1, and the labels that are there."""

    first: int
    last: int
    labels: list[int]


@dataclass
class _Row:
    """at: of its position, from the block's first byte on."""

    at: int
    id: bytes = b""
    labels: bytes = b""


class SegmentRows:
    """The rows of a block, as scorer.inputs.records.Rows, in buffers that the next block's take over."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self.size = min(MAX_BLOCK_RECORDS, BLOCK_BYTES // max(4 * sum(schema.inputs.values()), 1))  # a worker's slot
        self._features = [np.empty((self.size, width), np.float32) for width in schema.inputs.values()]
        self.bad: Faults = {}
        self.label_faults: Faults = {}

    def decode(self, shard: Shard, frames: FramedBlock, record: int, skip: int) -> tuple[NDArray[np.int64], bool]:
        """Take the segments of `frames` except the first `skip`, as far as there is room.

        record: number of the first row. Returns DecodedBlock.bounds, and whether there was room for all.
        """
        self.bad, self._rows = {}, list[_Row]()
        end = int(frames.bounds[-1])
        for number in range(len(frames)):
            stopped = self._record(shard, frames, number, record, skip)
            if stopped is not None:
                end = stopped
                break
            skip = 0
        labels = PackedStrings.of([row.labels for row in self._rows])
        self.ids = [row.id for row in self._rows]
        self.labels, self.label_sizes = np.frombuffer(labels.data, np.uint8), labels.sizes
        self.labelled = np.ones(len(self._rows), bool)
        return np.array([*(row.at for row in self._rows), end], np.int64), end == frames.bounds[-1]

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        for values, to in zip(self._features, rows, strict=True):
            to[...] = values[first:last]
        return True

    def _record(self, shard: Shard, frames: FramedBlock, number: int, record: int, skip: int) -> int | None:
        """Take a record's segments from number `skip` on; returns at which byte to continue if there is no room."""
        start, offset = int(frames.bounds[number]), frames.location(number)[1]
        if number in frames.bad:
            return self._fault(start, frames.bad[number])
        payload = payload_of(shard, frames, number)
        if payload is None:
            return self._error(shard, record, offset, start, "a frame-level record that is too long")
        parts = take_apart(payload)
        id = parts and id_of(parts)
        if parts is None or id is None or any(parts.frames(name) is None for name in self._schema.inputs):
            return self._irregular(shard, record, offset, start, payload)
        try:
            segments = _segments(parts)
        except _Invalid as invalid:
            return self._error(shard, record, offset, start, str(invalid))
        for place, segment in enumerate(segments[skip:], skip):
            if len(self._rows) == self.size:
                return start + place
            if reason := self._segment(parts, segment, _Row(start + place, b"%s:%d" % (id, segment.first))):
                self._error(shard, record, offset, start + place, reason)
        return None

    def _segment(self, parts: Parts, segment: _Segment, row: _Row) -> str:
        """Append the row of a segment; returns what is wrong with it, and then there is none."""
        counts: dict[str, int] = {}
        for name, to in zip(self._schema.inputs, self._features, strict=True):
            found = parts.frames(name)
            assert found is not None
            counts[name] = mean_of_frames(found, to[len(self._rows)], segment.first, segment.last)
            if counts[name] < 0:
                return f"the frames for {name!r} are not all of the model's width, or not as usual"
        if fault := apart(counts):
            return fault
        if segment.first >= min(counts.values(), default=segment.last):
            return f"a segment from frame {segment.first} on, of {min(counts.values())}"
        if len(row.id) > MAX_ID_BYTES:
            return f"its id is {len(row.id)} bytes long, more than {MAX_ID_BYTES}"
        row.labels = b"".join(map(varint, segment.labels))
        self._rows.append(row)
        return ""

    def _irregular(self, shard: Shard, record: int, offset: int, start: int, payload: memoryview) -> int | None:
        number = record + len(self._rows)
        parsed = parse(shard.address, bytes(payload), replace(self._schema, level="frame"), number, offset)
        if isinstance(parsed, RecordError):
            return self._fault(start, parsed)
        return self._error(shard, record, offset, start, "a record of an unusual form, whose segments are not read")

    def _error(self, shard: Shard, record: int, offset: int, at: int, reason: str) -> int | None:
        number = record + len(self._rows)
        return self._fault(at, RecordError(shard.address, reason, record=number, offset=offset, hints=(Hint.SKIP,)))

    def _fault(self, at: int, error: ShardError | RecordError) -> int | None:
        """Append a bad row; as `_record`."""
        if len(self._rows) == self.size:
            return at
        self.bad[len(self._rows)] = error
        self._rows.append(_Row(at))
        return None


def _segments(parts: Parts) -> list[_Segment]:
    """Those of a record, each once, in the order of their first judgements. Raises _Invalid."""
    if b"segment_start_times" not in parts.context:
        return []
    starts, labels = _ints(parts, "segment_start_times"), _ints(parts, "segment_labels")
    has_ends, has_scores = b"segment_end_times" in parts.context, b"segment_scores" in parts.context
    ends = _ints(parts, "segment_end_times") if has_ends else [start + _FRAMES_EACH for start in starts]
    scores = _floats(parts, "segment_scores") if has_scores else [1.0] * len(starts)
    if not len(starts) == len(ends) == len(labels) == len(scores):
        raise _Invalid("the segments' starts, ends, labels and scores differ in number")
    found: dict[int, _Segment] = {}
    for start, end, label, score in zip(starts, ends, labels, scores, strict=True):
        if not 0 <= start < end:
            raise _Invalid(f"a segment from frame {start} to {end}")
        segment = found.setdefault(start, _Segment(start, end, []))
        if score > 0 and label not in segment.labels:
            segment.labels.append(label)
    if len(found) > MAX_SEGMENTS:
        raise _Invalid(f"{len(found):,} segments, more than {MAX_SEGMENTS:,}")
    return list(found.values())


def _ints(parts: Parts, name: str) -> list[int]:
    data = only_data(parts.context.get(name.encode(), memoryview(b"")), _INT64_LIST)
    if data is None or not are_varints(data):
        raise _Invalid(f"{name!r} is no list of integers")
    values, _ = unpack_varints(PackedStrings(bytes(data), np.array([len(data)], np.int64)))
    return [int(value) for value in values]


def _floats(parts: Parts, name: str) -> list[float]:
    data = only_data(parts.context[name.encode()], _FLOAT_LIST)
    if data is None or len(data) % 4:
        raise _Invalid(f"{name!r} is no list of floats")
    return [float(value) for value in np.frombuffer(data, "<f4")]


class SegmentReader:
    """One open TFRecord file of SequenceExamples: see scorer.inputs.records.RecordReader."""

    decode_into, find_record = staticmethod(decode_nothing), None

    def __init__(self, shard: Shard, rows: SegmentRows) -> None:
        self._shard, self._rows = shard, rows
        self.check_unchanged, self.close = shard.check_unchanged, shard.close

    @property
    def size(self) -> int:
        return self._shard.size

    def block(self, position: Position) -> DecodedBlock:
        shard, offset = self._shard, position.offset
        while True:
            offset, skip = self._record_at(offset)
            frames = shard.frames(offset, position.record)
            bounds, whole = self._rows.decode(shard, frames, position.record, skip)
            last = frames.last and whole
            if len(bounds) > 1 or last:
                break
            offset = frames.end  # none of these records has segments
        if last:
            shard.check_unchanged()
        where = position.shard, shard.size, position.record, frames.offset
        return DecodedBlock(*where, bounds, last, frames.lost, self._rows)

    def _record_at(self, offset: int) -> tuple[int, int]:
        """Where the record starts that byte `offset` is in, and how many bytes before; (offset, 0) if there is none."""
        first = max(0, offset - MAX_SEGMENTS)
        content = self._shard.read(first, offset - first + _HEADER) if offset < self._shard.size else b""
        for back in range(min(MAX_SEGMENTS, offset) + 1 if content else 0):
            head = content[offset - first - back :][:_HEADER]
            if starts_with_record(head):
                (length,) = struct.unpack_from("<Q", head)
                return (offset - back, back) if back < _HEADER + length + _FOOTER else (offset, 0)
        return offset, 0


class SegmentOpener:
    """What shards that are read one after the other share: buffers."""

    def __init__(self, schema: Schema) -> None:
        self._block, self._rows = Block(), SegmentRows(schema)

    def __call__(self, source: Source, reader: Reader) -> SegmentReader:
        return SegmentReader(Shard(source, self._block, reader), self._rows)


class _Segments:
    """The segments of frame-level shards, where they are asked for."""

    def recognises(self, head: bytes) -> bool:
        return True  # and say what is wrong with it

    def opener(self, schema: Schema) -> SegmentOpener:
        return SegmentOpener(schema)


SEGMENTS = _Segments()
