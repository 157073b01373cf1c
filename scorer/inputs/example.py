"""tf.Examples to arrays: the float features that a model asks for, the id, and the labels where there are any.

What counts as a record (everything else is a RecordError of that record alone):

- every feature of the schema is a float list of exactly its width, all values finite;
- the id is `id`, or `video_id` (the 2017 release) where there is no `id`: a bytes list of one value, valid UTF-8
  without control characters, 1 to 1024 bytes;
- `labels` is absent, empty, or an int64 list of at most 65,536 values (any int64: the caller judges the range); with
  anything else there, the record is good and has no labels, and what is wrong with them is given beside it;
- all other features are ignored, whatever they hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import Hint, RecordError
from scorer.inputs import protobuf
from scorer.inputs.layouts import Ints, Layouts
from scorer.inputs.records import Faults, Schema
from scorer.inputs.tfrecord import Block, FramedBlock

Octets: TypeAlias = NDArray[np.uint8]

_PRINTABLE = bytes(range(0x20, 0x7F))
_COPIED_TOGETHER = 96  # records; their features pass through a core's cache on the way
_CONTINUES = bytes([0] * 0x80 + [1] * 0x80)  # whether a varint continues after this byte
_TOO_LONG = b"\1" * 10


class Records:
    """The decoded records of one block, n of them, good and bad; valid as long as its `frames`.

    ids: n ids as they are in the records (UTF-8); b"" in bad ones.
    labels: uint8, the labels of all good records as packed varints (see `unpack_varints`).
    label_sizes: int64 (n,) bytes of `labels` of each record.
    labelled: bool (n,) whether the record has a `labels` feature at all.
    bad: errors by row. Numbers that are not finite are found by `copy` only.
    """

    def __init__(self, path: str, frames: FramedBlock, schema: Schema, layouts: Layouts) -> None:
        self._path, self._frames, self._schema = path, frames, schema
        self._irregular: dict[int, protobuf.Row] = {}
        self.bad: Faults = dict(frames.bad)
        self.label_faults: Faults = {}
        if len(self.bad) == len(frames):
            self._set_empty()
        else:
            self._decode(layouts)

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        """Copy the features of rows first..last-1 to `rows`, one float32 (last - first, width) for each input.

        None of these rows may be bad. False if some turned out to be, and are in `bad` now; then `rows` is spoilt.
        """
        for at, to in zip(self._at, rows, strict=False):
            if not self._copy(first, at[first:last], to):
                return False
        for row, parsed in self._irregular.items():
            if first <= row < last:
                for to, values in zip(rows, parsed.floats, strict=True):
                    to[row - first] = values
        return True

    def _copy(self, first: int, at: Ints, to: NDArray[np.float32]) -> bool:
        """Copy from bytes `at` of the block to the rows of `to`; row first + i of the records is row i of them."""
        block = self._frames.block
        size = to.shape[1] * to.itemsize
        if size > block.capacity:
            return True  # these can only be irregular
        values = block.items(size)
        for start in range(0, len(at), _COPIED_TOGETHER):
            part = to[start : start + _COPIED_TOGETHER]
            part[...] = values[at[start : start + _COPIED_TOGETHER]].view("<f4").reshape(part.shape)
            finite = np.isfinite(part)
            if not finite.all() and not self._judge_infinite(first + start + np.flatnonzero(~finite.all(axis=1))):
                return False
        return True

    def _judge_infinite(self, rows: Ints) -> bool:
        """Judge rows with numbers that are not finite, which may be another record's; whether all are good."""
        found = [row for row in rows.tolist() if row not in self._irregular]
        self._fall_back(found)
        return self.bad.keys().isdisjoint(found)

    def _set_empty(self) -> None:
        count = len(self._frames)
        self.ids, self.labelled = [b""] * count, np.zeros(count, bool)
        self.labels, self.label_sizes = np.zeros(0, np.uint8), np.zeros(count, np.int64)

    def _decode(self, layouts: Layouts) -> None:
        fields = layouts.find(self._frames.block, self._frames.starts, self._frames.stops)
        self._at, self.labelled = fields.at, fields.labelled
        irregular = ~fields.known
        irregular[list(self.bad)] = True
        if irregular.any():
            # They are copied with the others and then overwritten: from where another record's numbers are.
            fields.at[:, irregular] = 0 if irregular.all() else fields.at[:, [np.argmin(irregular)]]
            fields.lengths[:, irregular] = 0
        block = self._frames.block
        self.ids = _ids(_gathered(block, fields.at[-2], fields.lengths[-2]), fields.lengths[-2], irregular)
        self.label_sizes = fields.lengths[-1]
        self.labels = _labels(_gathered(block, fields.at[-1], self.label_sizes), self.label_sizes, irregular)
        if irregular.any():
            self._fall_back(np.flatnonzero(irregular).tolist())

    def _fall_back(self, rows: Iterable[int]) -> None:
        """Decode `rows` through protobuf, as far as they are not known to be bad."""
        labels = np.split(self.labels, np.cumsum(self.label_sizes)[:-1])
        for row in rows:
            self.ids[row], labels[row] = b"", labels[row][:0]
            if row in self.bad:
                continue
            parsed = parse(self._path, self._frames.payload(row), self._schema, *self._frames.location(row))
            if isinstance(parsed, RecordError):
                self.bad[row] = parsed
                continue
            if parsed.label_fault:
                at = self._frames.location(row)
                self.label_faults[row] = label_fault(self._path, parsed.label_fault, *at)
            self._irregular[row] = parsed
            self.ids[row], self.labelled[row] = parsed.id, parsed.labels is not None
            labels[row] = np.frombuffer(parsed.labels or b"", np.uint8)
        self.labels, self.label_sizes = np.concatenate(labels), np.array([*map(len, labels)], np.int64)


def label_fault(path: str, reason: str, record: int, offset: int) -> RecordError:
    """What is wrong with the labels of a record that is good without them."""
    return RecordError(path, reason, record=record, offset=offset, remedy="write them as an int64 list")


def parse(path: str, payload: bytes, schema: Schema, record: int, offset: int) -> protobuf.Row | RecordError:
    """The record of this index and first byte of the shard, through protobuf; or what is wrong with it.

    An error is not raised: it may be kept, and would keep the payload with it.
    """
    try:
        return protobuf.parse(payload, schema.inputs, schema.level)
    except protobuf.FrameLevel as invalid:
        reason, remedy, hints = str(invalid), "give video-level shards", tuple[Hint, ...]()
    except protobuf.InvalidExample as invalid:
        reason, remedy, hints = str(invalid), "", (Hint.SKIP, Hint.FEATURES)
    return RecordError(path, reason, record=record, offset=offset, remedy=remedy, hints=hints)


class Decoder:
    """Decodes blocks of records by one schema.

    Records whose layout was seen before are taken apart together; all others, and all that have anything wrong with
    them, go through protobuf one by one, which also finds the words for what is wrong.
    """

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._layouts = Layouts(schema.inputs)

    def decode(self, path: str, frames: FramedBlock) -> Records:
        """The records of `frames`, a block of the shard `path`. Content errors are kept by row, not raised."""
        return Records(path, frames, self._schema, self._layouts)


def _ids(joined: bytes, sizes: Ints, irregular: NDArray[np.bool_]) -> list[bytes]:
    """n ids of `sizes` bytes, one after the other. Marks the rows whose id is not printable ASCII."""
    size = int(sizes[0])
    plain = not joined.translate(None, _PRINTABLE)
    if plain and size and (sizes == size).all():
        equally_long: list[bytes] = np.frombuffer(joined, f"S{size}").tolist()  # would strip NULs from the ends of ids
        return equally_long
    stops = np.cumsum(sizes).tolist()
    ids = [joined[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]
    if not plain:
        irregular |= [bool(id.translate(None, _PRINTABLE)) for id in ids]
    return ids


def _labels(joined: bytes, sizes: Ints, irregular: NDArray[np.bool_]) -> Octets:
    """The labels' bytes, n times `sizes`. Marks the rows that do not consist of varints of at most ten bytes."""
    labels = np.frombuffer(joined, np.uint8)
    if len(labels):
        stops = np.cumsum(sizes)
        irregular |= (labels[stops - 1] >= 0x80) & (sizes > 0)
        more = joined.translate(_CONTINUES)
        if _TOO_LONG in more:
            rows = zip((stops - sizes).tolist(), stops.tolist(), strict=True)
            irregular |= [_TOO_LONG in more[start:stop] for start, stop in rows]
    return labels


def _gathered(block: Block, at: Ints, sizes: Ints) -> bytes:
    """The `sizes` bytes from each of the bytes `at` of the block on, one after the other."""
    stops = np.cumsum(sizes)
    data: Octets = block.octets[np.repeat(at + sizes - stops, sizes) + np.arange(stops[-1])]
    return data.tobytes()
