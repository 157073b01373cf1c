"""What is measured on the videos before training: features' means and deviations, Fisher ratios, label shares.

The videos are read once, block by block, in one thread for each some of the features; what that takes beside them is
the blocks and a row of sums for each label.

Shape suffixes: N videos, F features, G groups of videos, P groups of a video at most.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.data import Videos

FISHER_VIDEOS = 20
FISHER_FLOOR = 1e-4
_BLOCK = 512  # videos at a time, of 4 MB as float64
_LABELS_BLOCK = 1 << 16

Floats: TypeAlias = NDArray[np.float64]


def statistics(videos: Videos) -> list[tuple[Tensor, Tensor]]:
    """Mean and standard deviation of each feature, float32 (width,) each, per input; a constant has deviation 1."""
    pairs = []
    for values in videos.features:
        found = _moments(values, _Groups.none(len(values)))
        std = np.sqrt(found.variance_F)
        std[std < 1e-6] = 1
        pairs.append((torch.from_numpy(found.mean_F).float(), torch.from_numpy(std).float()))
    return pairs


def fisher_ratios(videos: Videos) -> list[Tensor]:
    """Fisher's criterion of each feature, float32 (width,) each, per input: how much of its variance lies between
    labels (Fisher 1936; Duda, Hart and Stork 2001, section 3.8.2). Measured once for the same videos.

    For feature f it is sum_l n_l (m_lf - m_f)^2 / (N v_f) - L / N: n_l videos of label l with mean m_lf, over the L
    labels with at least FISHER_VIDEOS videos, N the sum of these n_l, m_f and v_f the mean and variance over all
    videos. L / N is what chance alone would give. At least FISHER_FLOOR; all 1 where no label is frequent enough.
    """
    if videos.ratios is None:
        groups = _Groups.of_labels(videos.labels)
        criteria = [_criterion(values, groups) for values in videos.features]
        videos.ratios = [torch.from_numpy(np.maximum(found, FISHER_FLOOR)).float() for found in criteria]
    return videos.ratios


@dataclass(frozen=True)
class _Groups:
    """The videos of each frequent label. labels: int32 (N, P), padded with -1. of: int32, the group of each label, -1
    for none; the last is that of the padding. sizes: int64 (G,), videos of each."""

    labels: NDArray[np.int32]
    of: NDArray[np.int32]
    sizes: NDArray[np.int64]

    @staticmethod
    def none(videos: int) -> _Groups:
        return _Groups(np.empty((videos, 0), np.int32), np.full(1, -1, np.int32), np.empty(0, np.int64))

    @staticmethod
    def of_labels(labels: NDArray[np.int32]) -> _Groups:
        counts = np.zeros(int(labels.max(initial=0)) + 2, np.int64)
        for first in range(0, len(labels), _LABELS_BLOCK):
            counts += np.bincount(labels[first : first + _LABELS_BLOCK].ravel() + 1, minlength=len(counts))
        frequent = np.flatnonzero(counts[1:] >= FISHER_VIDEOS)
        of = np.full(len(counts), -1, np.int32)
        of[frequent] = np.arange(len(frequent))
        return _Groups(labels, of, counts[1:][frequent])


def _criterion(values: NDArray[np.float32], groups: _Groups) -> Floats:
    """Fisher's criterion, float64 (F,)."""
    found, sizes = _moments(values, groups), groups.sizes
    total = max(1, int(sizes.sum()))
    between_F = sizes @ np.square(found.groups_GF, out=found.groups_GF)
    criterion: Floats = between_F / (total * (found.variance_F + 1e-12)) - len(sizes) / total
    return criterion


@dataclass
class _Moments:
    """Mean and variance (F,) over all videos, and how far the mean of each group is from the mean of all, (G, F)."""

    mean_F: Floats
    variance_F: Floats
    groups_GF: Floats


def _moments(values: NDArray[np.float32], groups: _Groups) -> _Moments:
    width, threads = values.shape[1], torch.get_num_threads()
    edges = np.linspace(0, width, min(threads, width) + 1).astype(int)
    whole = _Moments(np.zeros(width), np.zeros(width), np.zeros((len(groups.sizes), width)))

    def measure(columns: slice) -> None:
        part = _Moments(whole.mean_F[columns], whole.variance_F[columns], whole.groups_GF[:, columns])
        _measure(part, values[:, columns], groups)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(measure, map(slice, edges[:-1], edges[1:])))
    return whole


def _measure(found: _Moments, values: NDArray[np.float32], groups: _Groups) -> None:
    """Sums of the features less a mean of the first ones, so that a sum of squares loses nothing to a large mean."""
    if not len(values):
        return
    shift_F = values[:_BLOCK].mean(axis=0, dtype=np.float64)
    for first in range(0, len(values), _BLOCK):
        x_BF = values[first : first + _BLOCK] - shift_F
        found.mean_F += x_BF.sum(axis=0)
        found.variance_F += np.einsum("bf,bf->f", x_BF, x_BF)
        _add_groups(found.groups_GF, x_BF, groups.of[groups.labels[first : first + _BLOCK]])
    found.mean_F /= len(values)
    found.variance_F /= len(values)
    found.variance_F -= found.mean_F**2
    np.maximum(found.variance_F, 0, out=found.variance_F)
    found.groups_GF /= groups.sizes[:, None]
    found.groups_GF -= found.mean_F
    found.mean_F += shift_F


def _add_groups(groups_GF: Floats, x_BF: Floats, groups_BP: NDArray[np.int32]) -> None:
    """Add each video to the sums of its groups."""
    rows, columns = np.nonzero(groups_BP >= 0)
    if not len(rows):
        return
    groups = groups_BP[rows, columns]
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    groups_GF[groups[order][starts]] += np.add.reduceat(x_BF[rows[order]], starts, axis=0)


def log_odds(videos: Videos, labels: int) -> Tensor:
    """log(p / (1 - p)) of each label, float32 (labels,), p being its share of the videos, at least 1e-5."""
    counts = np.bincount(videos.labels[videos.labels >= 0], minlength=labels)
    share = np.clip(counts / max(1, len(videos)), 1e-5, 1 - 1e-5)
    return torch.from_numpy(np.log(share / (1 - share))).float()
