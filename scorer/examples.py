"""tf.Examples to arrays: the float features that a model asks for, the id, and the labels where there are any.

What counts as a record (everything else is a RecordError of that record alone):

- every feature of the schema is a float list of exactly its width, all values finite;
- the id is `id`, or `video_id` (the 2017 release) where there is no `id`: a bytes list of one value, valid UTF-8
  without NUL, 1 to 1024 bytes;
- `labels` is absent, empty, or an int64 list of at most 65,536 values (any int64: the caller judges the range);
- all other features are ignored, whatever they hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorer import protobuf
from scorer.errors import RecordError, ShardError
from scorer.framing import Frames
from scorer.layouts import Ints, Layouts, Places

_REMEDY = "use --on-error skip to go on without it"


@dataclass(frozen=True)
class Schema:
    """The features to read. inputs: name of each TFRecord float feature -> its width, in the order of the model."""

    inputs: Mapping[str, int]


@dataclass
class Records:
    """The decoded records of one block, n of them, good and bad.

    features: float32 (n, width) by name; rows of bad records hold no meaning.
    ids: n ids as they were in the records (UTF-8); b"" in bad ones.
    label_values, label_splits: int64 CSR, row i = values[splits[i]:splits[i + 1]].
    labelled: bool (n,) whether the record has a `labels` feature at all.
    bad: errors by row.
    """

    features: dict[str, NDArray[np.float32]]
    ids: list[bytes]
    label_values: NDArray[np.int64]
    label_splits: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    bad: dict[int, ShardError | RecordError]


class Decoder:
    """Decodes blocks of records by one schema.

    Records whose layout was seen before are taken apart together; all others, and all that have anything wrong with
    them, go through protobuf one by one, which also finds the words for what is wrong.
    """

    def __init__(self, schema: Schema) -> None:
        self._inputs = dict(schema.inputs)
        self._layouts = Layouts(self._inputs)

    def decode(self, path: str, frames: Frames) -> Records:
        """The records of `frames`, a block of the shard `path`. Content errors are kept by row, not raised."""
        if len(frames.bad) == len(frames):
            return self._nothing(frames)
        places = self._find(frames)
        unfit = ~places.known
        if unfit.any():
            places.at[:, unfit] = places.lengths[:, unfit] = 0
        features = {
            name: _floats(frames.block, width, at, unfit)
            for (name, width), at in zip(self._inputs.items(), places.at, strict=False)
        }
        ids = _ids(frames.block, places.at[-2], places.lengths[-2], unfit)
        values, splits = _labels(frames.block, places.at[-1], places.lengths[-1], unfit)
        records = Records(features, ids, values, splits, places.labelled, dict(frames.bad))
        if unfit.any():
            self._mend(path, frames, records, [row for row in np.flatnonzero(unfit).tolist() if row not in frames.bad])
        return records

    def _nothing(self, frames: Frames) -> Records:
        count = len(frames)
        features = {name: np.zeros((count, width), np.float32) for name, width in self._inputs.items()}
        none = np.zeros(0, np.int64)
        return Records(features, [b""] * count, none, np.zeros(count + 1, np.int64), none.astype(bool), frames.bad)

    def _find(self, frames: Frames) -> Places:
        places = self._layouts.find(frames.block, frames.starts, frames.lengths)
        strange = [row for row in np.flatnonzero(~places.known).tolist() if row not in frames.bad]
        if strange and self._layouts.learn(frames.payload(row) for row in strange):
            return self._layouts.find(frames.block, frames.starts, frames.lengths)
        return places

    def _mend(self, path: str, frames: Frames, records: Records, rows: list[int]) -> None:
        """Decode `rows` through protobuf and put them into `records`."""
        labels = np.split(records.label_values, records.label_splits[1:-1])
        for row in rows:
            try:
                parsed = protobuf.parse(frames.payload(row), self._inputs)
            except protobuf.Unfit as unfit:
                index, offset = frames.place(row)
                records.bad[row] = RecordError(path, str(unfit), record=index, offset=offset, remedy=_REMEDY)
                continue
            for values, floats in zip(records.features.values(), parsed.floats, strict=True):
                values[row] = floats
            records.ids[row] = parsed.id
            records.labelled[row] = parsed.labels is not None
            labels[row] = labels[row] if parsed.labels is None else parsed.labels
        records.label_values = np.concatenate(labels)
        records.label_splits = np.cumsum([0, *map(len, labels)], dtype=np.int64)


def _floats(block: bytes, width: int, at: Ints, unfit: NDArray[np.bool_]) -> NDArray[np.float32]:
    """float32 (n, width): the values from byte `at` of each record on. Marks rows with a value that is not finite."""
    size = 4 * width
    if len(block) < size:
        return np.zeros((len(at), width), np.float32)
    items: NDArray[np.void] = np.ndarray((len(block) - size + 1,), f"V{size}", block, strides=(1,))
    values = items[at].view("<f4").reshape(len(at), width)
    finite = np.isfinite(values)
    if not finite.all():
        unfit |= ~finite.all(axis=1)
    return values


def _ids(block: bytes, at: Ints, lengths: Ints, unfit: NDArray[np.bool_]) -> list[bytes]:
    """The n ids. Marks rows whose id is not plain ASCII."""
    ids = [block[first:last] for first, last in zip(at.tolist(), (at + lengths).tolist(), strict=True)]
    joined = b"".join(ids)
    if not joined.isascii() or b"\0" in joined:
        unfit |= [not id.isascii() or b"\0" in id for id in ids]
    return ids


def _labels(block: bytes, at: Ints, lengths: Ints, unfit: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """CSR of the labels, packed varints of 1 to 4 bytes. Marks rows with any other varint; they come out empty."""
    stops = np.cumsum(lengths)
    total = int(stops[-1])
    data = np.frombuffer(block, np.uint8)[np.repeat(at + lengths - stops, lengths) + np.arange(total)]
    final = data < 0x80  # the last byte of a varint
    ends = np.flatnonzero(final)
    sizes = np.diff(ends, prepend=-1)
    longest = int(sizes.max(initial=0))
    cut = (lengths > 0) & ~final[stops - 1] if total else np.zeros(len(at), bool)
    if longest > 4 or cut.any():
        cut[np.searchsorted(stops, ends[sizes > 4], side="right")] = True
        unfit |= cut
        return _labels(block, at, np.where(cut, 0, lengths), unfit)
    values = data[ends].astype(np.int64)
    for i in range(1, longest):
        values = np.where(sizes > i, values << 7 | data[ends - i] & 0x7F, values)
    before = np.zeros(total + 1, np.int64)
    np.cumsum(final, out=before[1:])
    return values, before[np.insert(stops, 0, 0)]
