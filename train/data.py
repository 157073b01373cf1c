"""Shards to arrays: decoded once with the scorer's reader, then held where the training can gather from them.

Labels are sparse: a matrix (n, P) of indices padded with -1, P being the most labels that a video has.
"""

from __future__ import annotations

import glob
import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorer.batches import Batch, batches
from scorer.errors import InputError, RecordError, TrainingError
from scorer.examples import Schema
from scorer.framing import Shard

Inputs = Sequence[tuple[str, int]]

HELD_OUT = 10
"""Without validation shards, every video whose id's CRC32 is a multiple of this is held out."""
_READ = 2048


@dataclass
class Videos:
    """n decoded videos.

    features: float32 (n, width) each, in the order of the model's inputs.
    labels: int32 (n, P), ascending and distinct, padded with -1.
    ids: n ids.
    """

    features: list[NDArray[np.float32]]
    labels: NDArray[np.int32]
    ids: list[bytes]

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


def expand(patterns: Iterable[str]) -> list[str]:
    """The files that the glob patterns name, each pattern's sorted. Raises InputError for one that names none."""
    paths: list[str] = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not found:
            raise InputError(f"{pattern}: no such file", remedy="check the path; quote patterns")
        paths += found
    return list(dict.fromkeys(paths))


def load(paths: Sequence[str], inputs: Inputs, labels: int, *, check: Callable[[], None] = lambda: None) -> Videos:
    """Decode labelled shards.

    Args:
        paths: TFRecord files, read in this order.
        inputs: name and width of each feature.
        labels: number of labels that the model has.
        check: called now and then, to stop the reading by raising.

    Raises:
        InputError, ShardError, RecordError: as the reader does; RecordError too for a label outside 0..labels-1.
        TrainingError: a shard without labels.
    """
    store = _Store(inputs, _capacity(paths, inputs))
    for path in paths:
        start, labelled = len(store.ids), False
        for batch in batches([path], Schema(dict(inputs)), _READ):
            check()
            _check_labels(batch, path, len(store.ids) - start, labels)
            labelled = labelled or batch.labelled
            store.append(batch)
            batch.release()
        if not labelled and len(store.ids) > start:
            raise TrainingError(f"{path}: its videos have no labels", remedy="train on labelled shards")
    return store.videos(labels)


class _Store:
    """Arrays that fill up. Their size is an upper bound: memory is only taken as rows are written."""

    def __init__(self, inputs: Inputs, capacity: int) -> None:
        self.features = [np.empty((capacity, width), np.float32) for _, width in inputs]
        self.names = [name for name, _ in inputs]
        self.ids: list[bytes] = []
        self.label_values: list[NDArray[np.int64]] = []
        self.label_counts: list[NDArray[np.int64]] = []

    def append(self, batch: Batch) -> None:
        start, end = len(self.ids), len(self.ids) + len(batch)
        for name, values in zip(self.names, self.features, strict=True):
            values[start:end] = batch.features[name]
        self.ids += batch.ids
        self.label_values.append(batch.label_values)
        self.label_counts.append(np.diff(batch.label_splits))

    def videos(self, labels: int) -> Videos:
        values = np.concatenate([np.zeros(0, np.int64), *self.label_values])
        counts = np.concatenate([np.zeros(0, np.int64), *self.label_counts])
        features = [values[: len(self.ids)] for values in self.features]
        return Videos(features, padded(values, counts, labels), self.ids)


def _capacity(paths: Sequence[str], inputs: Inputs) -> int:
    """An upper bound of the videos in the shards: a record is never smaller than the floats in it."""
    sizes = 0
    for path in paths:
        try:
            sizes += os.path.getsize(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened: {error.strerror}", remedy="check the path") from None
    return sizes // (4 * sum(width for _, width in inputs)) + 1


def _check_labels(batch: Batch, path: str, before: int, labels: int) -> None:
    """Raise RecordError for the first video of the batch with a label outside 0..labels-1."""
    values, splits = batch.label_values, batch.label_splits
    outside = np.flatnonzero((values < 0) | (values >= labels))
    if not len(outside):
        return
    record = before + int(np.searchsorted(splits, outside[0], side="right")) - 1
    reason = f"label {values[outside[0]]} is outside 0..{labels - 1}"
    remedy = f"leave the shard out, or train with --set labels={int(values.max()) + 1}"
    raise RecordError(path, reason, record=record, offset=_offset(path, record), remedy=remedy)


def _offset(path: str, record: int) -> int:
    with Shard(path) as shard:
        for frames in shard.blocks():
            if record < frames.record + len(frames):
                return frames.place(record - frames.record)[1]
    return 0


def padded(values: NDArray[np.int64], counts: NDArray[np.int64], labels: int) -> NDArray[np.int32]:
    """Label values in rows of `counts` -> (n, P) distinct ascending indices, padded with -1."""
    keys = np.unique(np.repeat(np.arange(len(counts)), counts) * labels + values)
    distinct = np.bincount(keys // labels, minlength=len(counts))
    matrix = np.full((len(counts), max(1, int(distinct.max(initial=0)))), -1, np.int32)
    matrix[np.arange(matrix.shape[1]) < distinct[:, None]] = keys % labels
    return matrix


def hold_out(videos: Videos) -> tuple[Videos, Videos]:
    """Training and validation videos, told apart by their ids alone, so that adding shards moves no video.

    Raises TrainingError when one of the two would be empty.
    """
    held = np.array([zlib.crc32(id) % HELD_OUT == 0 for id in videos.ids], bool)
    if not held.any() or held.all():
        raise TrainingError(f"{len(videos)} videos are too few to hold some out", remedy="name shards with --valid")
    return videos.rows(np.flatnonzero(~held)), videos.rows(np.flatnonzero(held))


class Resident:
    """Videos on the device, from which batches are gathered there.

    features: (n, width) each, in `dtype`; labels: int32 (n, P).
    """

    def __init__(self, videos: Videos, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.features = [torch.from_numpy(values).to(device, dtype) for values in videos.features]
        self.labels = torch.from_numpy(videos.labels).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, rows: Tensor) -> tuple[list[Tensor], Tensor]:
        """Inputs, float32 (B, width) each, and label indices (B, P) of the videos `rows`, int64 (B,) on the device."""
        return [values[rows].float() for values in self.features], self.labels[rows]


def statistics(videos: Videos) -> list[tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each feature, float32 (width,) each, per input; a constant has deviation 1."""
    pairs = []
    for values in videos.features:
        mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
        std[std < 1e-6] = 1
        pairs.append((torch.from_numpy(mean).float(), torch.from_numpy(std).float()))
    return pairs


FISHER_VIDEOS = 20
FISHER_FLOOR = 1e-4


def fisher_ratios(videos: Videos) -> list[Tensor]:
    """Fisher's criterion of each feature, float32 (width,) each, per input: how much of its variance lies between
    labels (Fisher 1936; Duda, Hart and Stork 2001, section 3.8.2).

    For feature f it is sum_l n_l (m_lf - m_f)^2 / (N v_f) - L / N: n_l videos of label l with mean m_lf, over the L
    labels with at least FISHER_VIDEOS videos, N the sum of these n_l, m_f and v_f the mean and variance over all
    videos. L / N is what chance alone would give. At least FISHER_FLOOR; all 1 where no label is frequent enough.
    """
    rows, columns = np.nonzero(videos.labels >= 0)
    labels = videos.labels[rows, columns]
    counts = np.bincount(labels, minlength=1)
    order = np.argsort(labels, kind="stable")
    edges = np.concatenate([[0], np.cumsum(counts)])
    frequent = np.flatnonzero(counts >= FISHER_VIDEOS)
    ratios = []
    for values in videos.features:
        mean, variance = values.mean(axis=0, dtype=np.float64), values.var(axis=0, dtype=np.float64) + 1e-12
        between = np.zeros_like(mean)
        for label in frequent:
            members = rows[order[edges[label] : edges[label + 1]]]
            between += len(members) * (values[members].mean(axis=0, dtype=np.float64) - mean) ** 2
        total = max(1, int(counts[frequent].sum()))
        ratio = between / (total * variance) - len(frequent) / total
        ratios.append(torch.from_numpy(np.maximum(ratio, FISHER_FLOOR)).float())
    return ratios


def log_odds(videos: Videos, labels: int) -> Tensor:
    """log(p / (1 - p)) of each label, float32 (labels,), p being its share of the videos, at least 1e-5."""
    counts = np.bincount(videos.labels[videos.labels >= 0], minlength=labels)
    share = np.clip(counts / max(1, len(videos)), 1e-5, 1 - 1e-5)
    return torch.from_numpy(np.log(share / (1 - share))).float()
