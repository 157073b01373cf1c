"""Soft labels: what the teacher (train/distillation/kernel.py) answers at points around the training videos.

One teacher learns from as many videos as memory has room for, MOST_VIDEOS at most, since its time grows with their
third power. Where there are more, the videos are cut into parts at random, and the teacher of a part's videos learns
from these and from as many others as there is room for.

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
from train.data import Videos
from train.devices import bf16_is_fast
from train.distillation.correlation import SOFT_LABELS
from train.distillation.kernel import CPU, Speed, Teacher, weighted
from train.distillation.tiles import Work
from train.measures import fisher_ratios

MOST_VIDEOS = 45_000
"""Videos that a teacher learns from, at most: time grows with their third power."""
REACHES = 1.3, 1.8
"""The largest share of a difference that is added to a video: of any two videos, and of two neighbours, which are
closer. Passes take turns at the two."""
PASSES = 20
"""Points around each video; an epoch uses one, and after so many they come again."""
_POINTS = 1024  # at a time
_GPU_SHARE = 0.8  # of a GPU's free memory, which features and points take a part of

AtWork = Callable[[float, str], None]
"""Called with the share that is done and what comes next; it stops the work by raising."""


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

    @staticmethod
    def empty(videos: int, labels: int) -> SoftLabels:
        """With shares drawn, and the rest to be filled in."""
        shape, count = (PASSES, videos), min(SOFT_LABELS, labels)
        share = np.resize(REACHES, (PASSES, 1)) * np.random.default_rng(0).uniform(0, 1, shape)
        return SoftLabels(
            torch.zeros(*shape, 2, dtype=torch.int32),
            torch.from_numpy(share).float(),
            torch.zeros(*shape, count, dtype=torch.int32),
            torch.zeros(*shape, count, dtype=torch.float16),
        )

    def of(self, rows: Tensor) -> SoftLabels:
        """Those of the videos `rows` alone."""
        return SoftLabels(*(tensor[:, rows] for tensor in vars(self).values()))

    def put(self, rows: Tensor, part: SoftLabels) -> None:
        """Fill in those of the videos `rows`."""
        for mine, given in zip(vars(self).values(), vars(part).values(), strict=True):
            mine[:, rows] = given


@dataclass(frozen=True)
class TeacherPart:
    """A part of the videos: the `number`-th of `count`. own: int64, whose soft labels it has. taught: int64, whom its
    teacher learns from, `own` first."""

    number: int
    count: int
    own: Tensor
    taught: Tensor


def parts_of(videos: int, labels: int) -> list[TeacherPart]:
    """Parts drawn at random, but the same each time in as much memory."""
    room = max(1, min(MOST_VIDEOS, most_videos(available_memory(), labels)))
    order = torch.randperm(videos, generator=torch.Generator().manual_seed(0))
    owns = order.chunk(math.ceil(videos / room))
    found = []
    for number, own in enumerate(owns):
        others = torch.cat([part for part in owns if part is not own]) if len(owns) > 1 else own[:0]
        drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(number))
        taught = torch.cat([own, others[drawn[: room - len(own)]]])
        found.append(TeacherPart(number, len(owns), own, taught))
    return found


def taught_in_parts(videos: int, labels: int) -> bool:
    """Whether there are more videos than one teacher can learn from."""
    return len(parts_of(videos, labels)) > 1


def most_videos(memory: float, labels: int) -> int:
    """Videos that a teacher has room for in so many bytes: 4 n^2 for their kernel, 28 n L for answers and labels."""
    if memory == math.inf:
        return MOST_VIDEOS
    b = 28.0 * labels
    return int((math.sqrt(b * b + 16 * memory) - b) / 8)


def teacher_device(device: torch.device, videos: int, labels: int) -> torch.device:
    """The GPU `device` where it has room for a part's teacher, else the CPU, whose memory the parts are cut for."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if most_videos(_GPU_SHARE * free, labels) >= len(parts_of(videos, labels)[0].taught):
            return device
    return CPU


def teacher_speed(device: torch.device = CPU) -> Speed:
    """How fast the device computes."""
    return Speed.measure(bf16_is_fast(device), device)


def part_seconds(part: TeacherPart, videos: Videos, labels: int, speed: Speed) -> float:
    """About how long a part takes."""
    features = sum(values.shape[1] for values in videos.features)
    return speed.fit(len(part.taught), features, labels) + speed.answer(
        PASSES * len(part.own), len(part.taught), features, labels
    )


def compute_part(soft: SoftLabels, part: TeacherPart, videos: Videos, labels: int, speed: Speed, work: Work) -> None:
    """Fill in what `soft` has of a part's own videos: PASSES points around each, labels as calibrated probabilities.

    The teacher is on the device of `speed`, the points are drawn and the answers kept in the host's memory.
    """
    random, device = _generator(part, len(videos)), speed.device
    rows, ratios = part.taught, [ratio.to(device) for ratio in fisher_ratios(videos)]
    features = [torch.from_numpy(values[rows.numpy()]).to(device) for values in videos.features]
    y_NL = _multi_hot(videos.labels[rows.numpy()], labels).to(device)
    teacher = Teacher(weighted(features, ratios), y_NL, work, speed)
    del y_NL
    work.begin("neighbours")
    near_NC = teacher.neighbours(work).cpu()
    count = sum(values.shape[1] for values in features)
    for number in range(PASSES):
        work.begin(f"pass {number + 1} of {PASSES} over the videos")
        others = torch.from_numpy(random.integers(0, len(rows), (len(part.own), 2)))
        if number % 2 and near_NC.shape[1]:
            others[:, 1] = near_NC[others[:, 0], others[:, 1] % near_NC.shape[1]]
        soft.others[number, part.own] = rows[others].int()
        for own in torch.arange(len(part.own)).split(_POINTS):
            share_B1 = soft.share[number, rows[own], None].to(device)
            trio = [index.to(device) for index in (own, *others[own].unbind(1))]
            points = [point([values[rows_B] for rows_B in trio], share_B1) for values in features]
            top = teacher.answer(weighted(points, ratios)).topk(soft.index.shape[2], dim=1)
            soft.index[number, rows[own]] = top.indices.int().cpu()
            soft.weight[number, rows[own]] = top.values.half().cpu()
            work.add(speed.answer(len(own), len(rows), count, labels))


def _generator(part: TeacherPart, videos: int) -> np.random.Generator:
    """The part's own; the first one's continues where the shares were drawn."""
    if part.number:
        return np.random.default_rng((0, part.number))
    random = np.random.default_rng(0)
    random.uniform(0, 1, (PASSES, videos))
    return random


def point(trio_BF: Sequence[Tensor], share_B1: Tensor) -> Tensor:
    """Videos plus a share of the difference of two others, which come as three of (B, F): float32 (B, F)."""
    own_BF, first_BF, second_BF = trio_BF
    return own_BF + share_B1 * (first_BF - second_BF)


def _multi_hot(labels: NDArray[np.int32], count: int) -> Tensor:
    """Label indices (N, P) padded with -1 -> float32 (N, L)."""
    y_NL = torch.zeros(len(labels), count)
    rows, columns = np.nonzero(labels >= 0)
    y_NL[torch.from_numpy(rows), torch.from_numpy(labels[rows, columns]).long()] = 1
    return y_NL
