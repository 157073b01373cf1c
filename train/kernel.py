"""Soft labels: what the other training videos say about each one, by kernel ridge regression.

Half of the labels have a handful of training videos, and a network learns those by heart: what it then says of its own
training videos is of no use to another one. Kernel ridge regression gives in closed form what it would say of a video
if that one had not been there, for all videos at once, and on a few ten thousand videos it labels better than the
networks do; better still when a second regression, from labels to labels, adds what company they keep. Mixed into the
targets (`TrainConfig.soft`), its answers teach the networks what it knows: distillation (Hinton et al. 2015,
arXiv:1503.02531) from a teacher that has never seen the labels that it teaches.

Shape suffixes: N videos, F features, L labels, K soft labels of a video.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train import checkpoint
from train.data import Videos, available_memory, fisher_ratios

KEPT = 64
"""Soft labels of a video: the rest of 3,862 are next to nothing together."""
PART = 45_000
"""Videos regressed on together, at most: time grows with their third power and memory with their second."""
RIDGE = 0.1
COMPANY_RIDGE = 3.0
GAMMA = 0.6
"""The kernel is exp(-GAMMA d^2)."""
FISHER_POWER = 0.75
LENGTH_POWER = 1 / 3
"""An input's vectors have a length that grows with its width to this power: 1 for mean_rgb, 1/2 for mean_audio."""
_FLOOR = 1e-4
_FORMAT = 1


@dataclass(frozen=True)
class SoftLabels:
    """The likeliest labels of n videos. index: int32 (n, K), distinct; weight: float32 (n, K), their probabilities."""

    index: Tensor
    weight: Tensor


def kept_soft_labels(videos: Videos, labels: int, folder: Path | None, check: Callable[[], None]) -> SoftLabels:
    """`soft_labels`, from a file in `folder` where one was left for the same videos, else left there.

    Raises OutputError when the file cannot be written, ModelError when it is damaged, and what `check` raises.
    """
    if folder is None:
        return soft_labels(videos, labels, check)
    path = folder / f"soft-{_name(videos, labels)}.safetensors"
    if not path.exists():
        soft = soft_labels(videos, labels, check)
        checkpoint.write(path, {"index": soft.index, "weight": soft.weight}, {})
    tensors, _ = checkpoint.read(path)
    return SoftLabels(tensors["index"], tensors["weight"])


def _name(videos: Videos, labels: int) -> str:
    """Hex digest of what the soft labels follow from: ids, labels, and enough of the features to tell them apart."""
    digest = hashlib.sha256(repr((_FORMAT, labels, videos.fingerprint())).encode())
    for values in videos.features:
        digest.update(np.ascontiguousarray(values[:64]).tobytes())
    return digest.hexdigest()[:16]


def soft_labels(videos: Videos, labels: int, check: Callable[[], None] = lambda: None) -> SoftLabels:
    """Each video's labels by kernel ridge regression on the other ones, as calibrated probabilities.

    Args:
        videos: the training videos. More than PART, or than fit into memory, are regressed on in parts drawn at random.
        labels: number of labels, L.
        check: called between the steps, which take minutes, to stop by raising.
    """
    count = min(KEPT, labels)
    soft = SoftLabels(torch.zeros(len(videos), count, dtype=torch.int32), torch.zeros(len(videos), count))
    x_NF = kernel_features(videos)
    for rows in _parts(len(videos)):
        y_NL = _multi_hot(videos.labels[rows.numpy()], labels)
        p_NL = calibrated(leave_one_out(x_NF[rows], y_NL, check), y_NL)
        check()
        p_NL = calibrated(with_company(p_NL, y_NL), y_NL)
        top = p_NL.topk(count, dim=1)
        soft.index[rows], soft.weight[rows] = top.indices.int(), top.values
    return soft


def kernel_features(videos: Videos) -> Tensor:
    """The inputs side by side, float32 (N, F): features weighted by their Fisher ratios, vectors of a fixed length."""
    widest = max(values.shape[1] for values in videos.features)
    parts = []
    for values, ratio in zip(videos.features, fisher_ratios(videos), strict=True):
        weighted = torch.from_numpy(values) * (ratio / ratio.mean()) ** FISHER_POWER
        length = (values.shape[1] / widest) ** LENGTH_POWER
        parts.append(length * torch.nn.functional.normalize(weighted))
    return torch.cat(parts, dim=1)


def leave_one_out(x_NF: Tensor, y_NL: Tensor, check: Callable[[], None] = lambda: None) -> Tensor:
    """What ridge regression with a Gaussian kernel on the N - 1 other videos answers for each: float32 (N, L).

    With A = (K + ridge I)^-1 y, the answer for video i without it is y_i - A_i / ((K + ridge I)^-1)_ii (Rasmussen and
    Williams 2006, "Gaussian Processes for Machine Learning", equation 5.12).
    """
    check()
    square_N = x_NF.square().sum(dim=1)
    kernel_NN = torch.mm(x_NF, x_NF.T).mul_(-2).add_(square_N).add_(square_N[:, None])
    kernel_NN.clamp_(min=0).mul_(-GAMMA).exp_().diagonal().add_(RIDGE)
    check()
    factor_NN = torch.linalg.cholesky(kernel_NN)
    del kernel_NN
    check()
    solution_NL = torch.cholesky_solve(y_NL, factor_NN)
    check()
    diagonal_N = torch.cholesky_inverse(factor_NN).diagonal().clone()
    return y_NL - solution_NL / diagonal_N[:, None]


def with_company(p_NL: Tensor, y_NL: Tensor) -> Tensor:
    """Probabilities of which each is corrected by the others of its video, as labels go together: float32 (N, L).

    Ridge regression of y - p on the roots of p, and of each video what it answers without that video's own labels, as
    in `leave_one_out`: for the fitted r_i and the leverage h_i that is y_i - (y_i - p_i - r_i) / (1 - h_i).
    """
    root_NL, missing_NL = p_NL.sqrt(), y_NL - p_NL
    gram_LL = root_NL.T @ root_NL
    gram_LL.diagonal().add_(COMPANY_RIDGE)
    factor_LL = torch.linalg.cholesky(gram_LL)
    fitted_NL = root_NL @ torch.cholesky_solve(root_NL.T @ missing_NL, factor_LL)
    leverage_N = torch.linalg.solve_triangular(factor_LL, root_NL.T, upper=False).square().sum(dim=0)
    return y_NL - (missing_NL - fitted_NL) / (1 - leverage_N)[:, None]


def calibrated(values_NL: Tensor, y_NL: Tensor) -> Tensor:
    """Probabilities for what a regression answered where `y_NL` was right: sigmoid(a log(value) + b), float32 (N, L).

    Regression on a few examples answers 0.05 where 0.01 is right, and 0.7 where 0.87 is. a and b are the most likely
    ones (Platt 1999) for each video's highest values, found by Newton's method from about where they end.
    """
    top = values_NL.topk(min(KEPT, values_NL.shape[1]), dim=1)
    x = top.values.clamp(min=_FLOOR).log().double().flatten()
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    y = y_NL.gather(1, top.indices).flatten().double()
    coefficients = torch.tensor([2.0, 2.0], dtype=torch.double)
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(design @ coefficients)
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + 1e-6 * torch.eye(2, dtype=torch.double)
        step = torch.linalg.solve(curvature, design.T @ (y - p))
        coefficients = coefficients + step.clamp(-1, 1)
    a, b = coefficients.tolist()
    return values_NL.clamp(min=_FLOOR).log_().mul_(a).add_(b).sigmoid_()


_NEWTON_STEPS = 12


def _parts(count: int) -> list[Tensor]:
    """Equal parts of 0..count-1, drawn at random but the same each time, that memory has room for."""
    room = int(min(PART, math.sqrt(available_memory() / _BYTES)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return list(order.chunk(math.ceil(count / room)))


_BYTES = 10
"""Memory that a pair of videos takes: two float32 matrices at a time, and some more for the rest."""


def _multi_hot(labels: NDArray[np.int32], count: int) -> Tensor:
    """Label indices (N, P) padded with -1 -> float32 (N, L)."""
    y_NL = torch.zeros(len(labels), count)
    rows, columns = np.nonzero(labels >= 0)
    y_NL[torch.from_numpy(rows), torch.from_numpy(labels[rows, columns]).long()] = 1
    return y_NL
