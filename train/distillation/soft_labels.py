"""Soft labels: what the teacher (train/distillation/kernel.py) answers at points around the training videos.

Shape suffixes: N videos, F features, L labels, B points at a time, P passes, K soft labels of a point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scorer.system.memory import available_memory
from train.data import Videos, fisher_ratios
from train.devices import bf16_is_fast
from train.distillation.correlation import SOFT_LABELS
from train.distillation.kernel import Teacher, weighted

MOST_VIDEOS = 45_000
"""Videos regressed on, at most: time grows with their third power."""
REACHES = 1.3, 1.8
"""The largest share of a difference that is added to a video: of any two videos, and of two neighbours, which are
closer. Passes take turns at the two."""
PASSES = 20
"""Points around each video; an epoch uses one, and after so many they come again."""
_POINTS = 1024  # at a time
_BYTES = 10
"""Memory that a pair of videos takes: two float32 matrices at a time, and some more for the rest."""


@dataclass(frozen=True)
class SoftLabels:
    """Points around n videos, P for each, and their likeliest labels.

    others: int32 (P, n, 2), the videos whose difference, the first less the second, is added to the video. share:
    float32 (P, n), how much of it. index: int32 (P, n, K), distinct. weight: float16 (P, n, K), their probabilities.
    """

    others: Tensor
    share: Tensor
    index: Tensor
    weight: Tensor


def compute_soft_labels(
    videos: Videos, labels: int, at: Callable[[str], None] = lambda step: None, bf16: bool | None = None
) -> SoftLabels:
    """PASSES points around each video, and their labels as calibrated probabilities.

    Args:
        videos: the training videos. More than memory has room for are regressed on in parts drawn at random.
        labels: number of labels, L.
        at: called with what comes next, between steps that take minutes; it stops them by raising.
        bf16: whether products are taken in bfloat16; None where the CPU is fast at it.
    """
    bf16 = bf16_is_fast(torch.device("cpu")) if bf16 is None else bf16
    shape = PASSES, len(videos)
    random = np.random.default_rng(0)
    soft = SoftLabels(
        torch.zeros(*shape, 2, dtype=torch.int32),
        torch.from_numpy(np.resize(REACHES, (PASSES, 1)) * random.uniform(0, 1, shape)).float(),
        torch.zeros(*shape, min(SOFT_LABELS, labels), dtype=torch.int32),
        torch.zeros(*shape, min(SOFT_LABELS, labels), dtype=torch.float16),
    )
    ratios = fisher_ratios(videos)
    for rows in _parts(len(videos)):
        features = [torch.from_numpy(values[rows.numpy()]) for values in videos.features]
        teacher = Teacher(weighted(features, ratios), _multi_hot(videos.labels[rows.numpy()], labels), at, bf16)
        near_NC = teacher.neighbours()
        for number in range(PASSES):
            others = torch.from_numpy(random.integers(0, len(rows), (len(rows), 2)))
            if number % 2 and near_NC.shape[1]:
                others[:, 1] = near_NC[others[:, 0], others[:, 1] % near_NC.shape[1]]
            soft.others[number, rows] = rows[others].int()
            for own in torch.arange(len(rows)).split(_POINTS):
                at(f"pass {number + 1} of {PASSES} over the videos")
                share_B1 = soft.share[number, rows[own], None]
                trio = own, *others[own].unbind(1)
                points = [point([values[rows_B] for rows_B in trio], share_B1) for values in features]
                top = teacher.answer(weighted(points, ratios)).topk(soft.index.shape[2], dim=1)
                soft.index[number, rows[own]] = top.indices.int()
                soft.weight[number, rows[own]] = top.values.half()
    return soft


def point(trio_BF: Sequence[Tensor], share_B1: Tensor) -> Tensor:
    """Videos plus a share of the difference of two others, which come as three of (B, F): float32 (B, F)."""
    own_BF, first_BF, second_BF = trio_BF
    return own_BF + share_B1 * (first_BF - second_BF)


def _parts(count: int) -> list[Tensor]:
    """Equal parts of 0..count-1, drawn at random but the same each time, that memory has room for."""
    room = int(min(MOST_VIDEOS, math.sqrt(available_memory() / _BYTES)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return list(order.chunk(math.ceil(count / room)))


def _multi_hot(labels: NDArray[np.int32], count: int) -> Tensor:
    """Label indices (N, P) padded with -1 -> float32 (N, L)."""
    y_NL = torch.zeros(len(labels), count)
    rows, columns = np.nonzero(labels >= 0)
    y_NL[torch.from_numpy(rows), torch.from_numpy(labels[rows, columns]).long()] = 1
    return y_NL
