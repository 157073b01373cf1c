"""Shards to arrays: decoded once with the scorer's reader, then held where the training can gather from them.

Labels are sparse: a matrix (n, P) of indices padded with -1, P being the most labels that a video has.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, compress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from scorer.errors import Hint, RecordError, TrainingError
from scorer.inputs.batching import Batch
from scorer.inputs.columns import NO_COLUMNS, check_columns
from scorer.inputs.layouts import ID_KEYS
from scorer.inputs.position import BEGINNING, bytes_read
from scorer.inputs.readers import decoded_blocks
from scorer.inputs.records import Schema
from scorer.inputs.source import Source
from scorer.outputs.atomic import new_folder, writing
from scorer.pipeline.ranges import RangeReader
from scorer.system.cores import usable_cores
from scorer.system.memory import available_memory
from train.cache import make_arrays, name_of, read, write_rest

Inputs = Sequence[tuple[str, int]]
Split = Literal["all", "train", "valid"]
"""All videos, those to train on, or those that are held out."""

HELD_OUT = 10
"""Without validation shards, every video whose id's CRC32 is a multiple of this is held out."""
_READ = 2048
MOST_LABELS = 1 << 20
VOCABULARIES = {3862: "YouTube-8M's 2018 release", 4716: "YouTube-8M's 2017 release"}
"""Labels in all -> whose."""


@dataclass
class Videos:
    """n decoded videos.

    features: float32 (n, width) each, in the order of the model's inputs.
    labels: int32 (n, P), ascending and distinct, padded with -1.
    ids: n ids.
    ratios: their Fisher ratios once these are known (train/measures.py), for all that ask.
    """

    features: list[NDArray[np.float32]]
    labels: NDArray[np.int32]
    ids: list[bytes]
    ratios: list[Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def fingerprint(self) -> str:
        """Hex digest of the ids and labels in their order: whether a resumed run sees the same videos."""
        digest = hashlib.sha256(b"\n".join(self.ids))
        digest.update(self.labels.tobytes())
        return digest.hexdigest()[:16]

    def rows(self, chosen: NDArray[np.int64]) -> Videos:
        """A copy of the videos at the indices `chosen`."""
        ids = [self.ids[row] for row in chosen]
        return Videos([values[chosen] for values in self.features], self.labels[chosen], ids)


def load(
    shards: Sequence[Source],
    inputs: Inputs,
    labels: int | None,
    *,
    split: Split = "all",
    cache: Path | None = None,
    columns: Mapping[str, str] = NO_COLUMNS,
    at: Callable[[float], None] = lambda done: None,
) -> Videos:
    """Decode labelled shards.

    Args:
        shards: read in this order.
        inputs: name and width of each feature.
        labels: number of labels that the model has, None where it will have as many as the videos need.
        split: all videos, or those to train on, or the others, held out to validate on. Which are held out depends on
            their ids alone, so that adding shards moves no video.
        cache: folder for memory-mapped arrays, for data larger than memory; they are used again while the shards stay
            as they are. Without it the arrays are in memory.
        columns: of Parquet and Arrow files, feature -> column, where its name is another.
        at: called now and then with the share of the shards that is read; it stops the reading by raising.

    Raises:
        InputError, ShardError, RecordError: as the reader does. RecordError too for a label below 0, and, once all
            shards are read, for one that is not below `labels`.
        TrainingError: a shard without labels, or more videos than fit into memory.
        OutputError: the cache cannot be written.
    """
    check_columns(columns, [name for name, _ in inputs])
    capacity, schema = _capacity(shards, inputs), Schema(dict(inputs), columns=columns)
    if cache is None:
        store = _Store(inputs, lambda count: _in_memory(inputs, count), capacity, split)
        return _decode(shards, schema, labels, store, at)
    named = [sorted(columns.items())] if columns else []
    place = cache / name_of(shards, tuple(inputs), labels, split, *named)
    if not place.exists():
        with new_folder(place) as folder, writing(place):
            made = partial(_on_disk, folder, inputs)
            store = _Store(inputs, made, capacity, split)
            videos = _decode(shards, schema, labels, store, at)
            write_rest(folder, videos.features, videos.labels, videos.ids)
    return Videos(*read(place, [width for _, width in inputs], MOST_LABELS if labels is None else labels))


def _decode(
    shards: Sequence[Source], schema: Schema, labels: int | None, store: _Store, at: Callable[[float], None]
) -> Videos:
    before = [*accumulate((shard.stat.size for shard in shards), initial=0)]
    limit = _LabelLimit(MOST_LABELS if labels is None else labels, schema.columns)
    unlabelled: set[int] = set()
    threads = usable_cores()
    reader = RangeReader(shards, schema, _READ, lambda batch: None, threads=threads)
    with closing(reader.read(max_in_flight=threads + 2)) as found:
        for batch in (done.batch for some in found for done in some):
            if batch.label_faults:
                raise batch.label_faults[0]
            parts = _parts(batch)
            limit.check(batch, shards, parts)
            _check_labelled(batch, shards, parts, unlabelled)
            store.append(batch)
            batch.release()
            at(bytes_read(before, batch.end, batch.consumed) / max(1, before[-1]))
    limit.finish()
    return store.videos()


@dataclass(frozen=True)
class _Part:
    """The rows first..last-1 of a batch: they are the records from `record` on of the shard `shard`."""

    first: int
    last: int
    shard: int
    record: int


def _parts(batch: Batch) -> list[_Part]:
    """A batch in parts, each of one shard; no record of them is bad."""
    parts, row, index, record = [], 0, batch.start.shard, batch.start.record
    for shard, records in [*batch.finished, (batch.end.shard, batch.end.record)]:
        first = record if shard == index else 0
        parts.append(_Part(row, row + records - first, shard, first))
        row = parts[-1].last
    return [part for part in parts if part.first < part.last]


def _check_labelled(batch: Batch, shards: Sequence[Source], parts: list[_Part], unlabelled: set[int]) -> None:
    """Raises TrainingError for a shard that ends in this batch and has videos, but no labels.

    unlabelled: the shards that have begun and had no labels so far.
    """
    labelled = batch.labelled_rows
    for part in parts:
        if labelled[part.first : part.last].any():
            unlabelled.discard(part.shard)
        elif not part.record:
            unlabelled.add(part.shard)
    for shard, _ in batch.finished:
        if shard in unlabelled:
            reason = f"{shards[shard].address}: its videos have no labels"
            raise TrainingError(reason, remedy="train on labelled shards")


@dataclass
class _LabelLimit:
    """Which labels are not below `labels`, over all shards: where the first is, in how many videos, the largest."""

    labels: int
    columns: Mapping[str, str]
    first: tuple[Source, int, int] | None = None  # shard, record, label
    videos: int = 0
    largest: int = -1

    def check(self, batch: Batch, shards: Sequence[Source], parts: list[_Part]) -> None:
        """Note those of a batch that consists of `parts`. Raises RecordError for a negative one."""
        values, splits = batch.label_values, batch.label_splits
        if not len(values) or (values.min() >= 0 and values.max() < self.labels):
            return
        rows = np.searchsorted(splits, np.arange(len(values)), side="right") - 1
        if values.min() < 0:
            place = int(np.argmax(values < 0))
            shard, record = _record(shards, parts, int(rows[place]))
            raise self._error(shard, record, f"label {values[place]} is below 0", (Hint.SKIP,))
        outside = values >= self.labels
        place = int(np.argmax(outside))
        self.first = self.first or (*_record(shards, parts, int(rows[place])), int(values[place]))
        self.videos += len(np.unique(rows[outside]))
        self.largest = max(self.largest, int(values.max()))

    def finish(self) -> None:
        """Raise RecordError for the first label noted, if any, that says how many labels all need."""
        if self.first is None:
            return
        shard, record, label = self.first
        reason = f"label {label} is outside 0..{self.labels - 1}"
        if self.videos > 1:
            reason += f"; {self.videos:,} videos have such labels, up to {self.largest}"
        if self.largest >= MOST_LABELS:
            raise self._error(shard, record, reason, (Hint.SKIP,))
        count, source = label_count(self.largest)
        remedy = f"train a model of {count} labels" + (f", as {source} has" if source else "")
        raise self._error(shard, record, reason, (Hint.MORE_LABELS,), remedy)

    def _error(self, shard: Source, record: int, reason: str, hints: tuple[Hint, ...], remedy: str = "") -> RecordError:
        offset = _offset(shard, record, {name: self.columns[name] for name in ID_KEYS if name in self.columns})
        return RecordError(shard.address, reason, record=record, offset=offset, hints=hints, remedy=remedy)


def _record(shards: Sequence[Source], parts: list[_Part], row: int) -> tuple[Source, int]:
    """The shard and the record that are row `row` of a batch."""
    part = next(part for part in parts if row < part.last)
    return shards[part.shard], part.record + row - part.first


def label_count(largest: int) -> tuple[int, str]:
    """How many labels a model needs whose videos' largest is `largest`, and whose vocabulary that is, "" for their own.

    Few videos seldom have the last label of a vocabulary, so what has more than half of a known one's has that.
    """
    for count, source in VOCABULARIES.items():
        if count // 2 < largest + 1 <= count:
            return count, source
    return largest + 1, ""


class _Store:
    """Arrays that fill up with the videos of one split, and are longer than needed; longer ones take their place.

    make: gives arrays for so many videos.
    """

    def __init__(
        self, inputs: Inputs, make: Callable[[int], list[NDArray[np.float32]]], capacity: int, split: Split
    ) -> None:
        self.names, self.features, self.split = [name for name, _ in inputs], make(capacity), split
        self._make, self._capacity = make, capacity
        self.ids: list[bytes] = []
        self.label_values: list[NDArray[np.int64]] = []
        self.label_counts: list[NDArray[np.int64]] = []

    def append(self, batch: Batch) -> None:
        chosen = self._chosen(batch.ids)
        start, end = len(self.ids), len(self.ids) + int(chosen.sum())
        if end > self._capacity:
            self._grow(end)
        for name, values in zip(self.names, self.features, strict=True):
            values[start:end] = batch.features[name][chosen]
        self.ids += compress(batch.ids, chosen)
        counts = np.diff(batch.label_splits)
        self.label_values.append(batch.label_values[np.repeat(chosen, counts)])
        self.label_counts.append(counts[chosen])

    def _grow(self, least: int) -> None:
        before, self._capacity = self.features, max(least, 2 * self._capacity)
        self.features = self._make(self._capacity)
        for old, new in zip(before, self.features, strict=True):
            new[: len(self.ids)] = old[: len(self.ids)]

    def _chosen(self, ids: list[bytes]) -> NDArray[np.bool_]:
        if self.split == "all":
            return np.ones(len(ids), bool)
        held = np.array([zlib.crc32(id) % HELD_OUT == 0 for id in ids], bool)
        return held if self.split == "valid" else ~held

    def videos(self) -> Videos:
        values = np.concatenate([np.zeros(0, np.int64), *self.label_values])
        counts = np.concatenate([np.zeros(0, np.int64), *self.label_counts])
        features = [array[: len(self.ids)] for array in self.features]
        return Videos(features, padded(values, counts), self.ids)


def _capacity(shards: Sequence[Source], inputs: Inputs) -> int:
    """About the most videos in the shards: a record is no smaller than the floats in it, unless it is compressed."""
    sizes = sum(shard.stat.size for shard in shards)
    return sizes // (4 * sum(width for _, width in inputs)) + 1


def _in_memory(inputs: Inputs, capacity: int) -> list[NDArray[np.float32]]:
    """Arrays in memory, float32 (capacity, width) each; pages are only taken as they are written."""
    needed, available = 4 * capacity * sum(width for _, width in inputs), available_memory()
    if needed > available:
        raise TrainingError(
            f"the videos need {needed / 1e9:.1f} GB of memory and {available / 1e9:.1f} GB are available",
            hints=(Hint.ON_DISK,),
        )
    return [np.empty((capacity, width), np.float32) for _, width in inputs]


def _on_disk(folder: Path, inputs: Inputs, capacity: int) -> list[NDArray[np.float32]]:
    """As `_in_memory`, mapped from files of `folder`. Raises OSError."""
    return make_arrays(folder, [(capacity, width) for _, width in inputs])


def _offset(source: Source, record: int, columns: Mapping[str, str]) -> int:
    for block in decoded_blocks([(0, source)], Schema({}, columns=columns), BEGINNING):
        if record < block.record + len(block):
            return block.position(record - block.record).offset
    return 0


def padded(values: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int32]:
    """Label values in rows of `counts` -> (n, P) distinct ascending indices, padded with -1."""
    labels = 1 + int(values.max(initial=0))
    keys = np.unique(np.repeat(np.arange(len(counts)), counts) * labels + values)
    distinct = np.bincount(keys // labels, minlength=len(counts))
    matrix = np.full((len(counts), max(1, int(distinct.max(initial=0)))), -1, np.int32)
    matrix[np.arange(matrix.shape[1]) < distinct[:, None]] = keys % labels
    return matrix
