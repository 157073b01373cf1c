"""Soft labels: what kernel ridge regression on the training videos says of points around them.

Half of the labels have a handful of training videos, and a network learns those by heart. On a few ten thousand videos
kernel ridge regression labels better than networks that learn these: once more where the kernel's distances count what
changes the answers (`relevance`), and once more where a second regression, from labels to labels, adds what company
they keep. A network that answers as the regression does, wherever it is asked, is as good and smaller by far:
distillation (Hinton et al. 2015, arXiv:1503.02531) as the matching of functions (Beyer et al. 2021, arXiv:2106.05237),
on a video plus some of the difference of two others, be they any two or neighbours. Such points are as far from the
nearest training video as an unseen video is; between two videos, where mixup (Zhang et al. 2017, arXiv:1710.09412)
would ask, the regression mostly repeats their labels. As in that work patience pays: after 40 epochs a network labels
better than its teacher.

Shape suffixes: N videos, F features, L labels, B points at a time, P passes, K soft labels of a point, C closest
videos, D directions, R rows that are left.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train import checkpoint
from train.data import Videos, available_memory, fisher_ratios
from train.devices import bf16_is_fast

KEPT = 64
"""Soft labels of a point: the rest of 3,862 are next to nothing together."""
MOST_VIDEOS = 45_000
"""Videos regressed on, at most: time grows with their third power."""
RIDGE = 0.1
COMPANY_RIDGE = 3.0
GAMMA = 0.6
"""The kernel is exp(-GAMMA d^2)."""
FISHER_POWER = 0.75
LENGTH_POWER = 1 / 3
"""An input's vectors have a length that grows with its width to this power: 1 for mean_rgb, 1/2 for mean_audio."""
RELEVANCE_POWER = 0.3
REACHES = 1.3, 1.8
"""The largest share of a difference that is added to a video: of any two videos, and of two neighbours, which are
closer. Passes take turns at the two."""
NEIGHBOURS = 10
PASSES = 20
"""Points around each video; an epoch uses one, and after so many they come again."""
_POINTS = 1024  # at a time
_ASKING = 10_000  # videos, drawn at random, of the regression that gives the relevance
_ASKED = 2000  # of these, whose gradients make it
_DIRECTIONS = 256  # of the labels' space, drawn at random, in which the gradients are taken
_USUAL = 0.22  # what the kernel mostly is
_FLOOR = 1e-4
_COLUMNS = 1024  # of a factor's inverse, at a time
_FORMAT = 4


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


def kept_soft_labels(videos: Videos, labels: int, folder: Path | None, at: Callable[[str], None]) -> SoftLabels:
    """`soft_labels`, from a file in `folder` where one was left for the same videos, else left there.

    Raises OutputError when the file cannot be written, ModelError when it is damaged, and what `at` raises.
    """
    if folder is None:
        return soft_labels(videos, labels, at)
    path = _file(videos, labels, folder)
    if not path.exists():
        checkpoint.write(path, vars(soft_labels(videos, labels, at)), {})
    tensors, _ = checkpoint.read(path)
    return SoftLabels(**tensors)


def _file(videos: Videos, labels: int, folder: Path) -> Path:
    """Where in `folder` the soft labels are kept.

    The name has a digest of what they follow from: ids, labels, and enough of the features to tell them apart.
    """
    digest = hashlib.sha256(repr((_FORMAT, PASSES, labels, videos.fingerprint())).encode())
    for values in videos.features:
        digest.update(np.ascontiguousarray(values[:64]).tobytes())
    return folder / f"soft-{digest.hexdigest()[:16]}.safetensors"


def soft_labels(
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
        torch.zeros(*shape, min(KEPT, labels), dtype=torch.int32),
        torch.zeros(*shape, min(KEPT, labels), dtype=torch.float16),
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


def weighted(inputs: Sequence[Tensor], ratios: Sequence[Tensor]) -> Tensor:
    """The inputs side by side, float32 (B, F): features weighted by their Fisher ratios, vectors of a fixed length."""
    widest = max(values.shape[1] for values in inputs)
    parts = []
    for values, ratio in zip(inputs, ratios, strict=True):
        scaled = values * (ratio / ratio.mean()) ** FISHER_POWER
        parts.append((values.shape[1] / widest) ** LENGTH_POWER * torch.nn.functional.normalize(scaled))
    return torch.cat(parts, dim=1)


class Teacher:
    """Ridge regression with a Gaussian kernel from features to labels, then from labels to labels, both calibrated.

    The kernel sees the features through `relevance`, which an earlier regression gives.
    """

    def __init__(
        self, x_NF: Tensor, y_NL: Tensor, at: Callable[[str], None] = lambda step: None, bf16: bool = False
    ) -> None:
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        some = torch.randperm(len(x_NF), generator=torch.Generator().manual_seed(0))[:_ASKING]
        solution_NL = torch.cholesky_solve(y_NL[some], _factor(x_NF[some], at))
        at("which features matter")
        self._seen_FF = relevance(x_NF[some], solution_NL, self._dtype)
        x_NF = x_NF @ self._seen_FF
        factor_NN = _factor(x_NF, at)
        solution_NL = torch.cholesky_solve(y_NL, factor_NN)
        at("its videos as if they had not been there")
        # What the regression would answer for a video without that video (Rasmussen and Williams 2006, "Gaussian
        # Processes for Machine Learning", equation 5.12).
        alone_NL = y_NL - solution_NL / inverse_diagonal(factor_NN)[:, None]
        del factor_NN
        self._square_N = x_NF.square().sum(dim=1)
        self._x_FN = x_NF.to(self._dtype).T.contiguous()
        self._solution_NL, self._sum_L = solution_NL.to(self._dtype), solution_NL.sum(dim=0)
        self._odds = calibration(alone_NL, y_NL)
        p_NL = calibrated(alone_NL, self._odds)
        at("regression from labels to labels")
        company_LL, alone_NL = company(p_NL, y_NL)
        self._company_LL = company_LL.to(self._dtype)
        self._company_odds = calibration(alone_NL, y_NL)

    def answer(self, x_BF: Tensor) -> Tensor:
        """Probabilities (B, L) for what `weighted` gives."""
        p_BL = calibrated(self.regress(x_BF), self._odds)
        return calibrated(with_company(p_BL, self._company_LL), self._company_odds)

    def neighbours(self) -> Tensor:
        """Of each video the NEIGHBOURS closest to it as the kernel sees them, or all others: int64 (N, C)."""
        near = []
        for rows_B in torch.arange(len(self._square_N)).split(_POINTS):
            close_BN = 2 * (self._x_FN.T[rows_B] @ self._x_FN).float() - self._square_N
            close_BN[torch.arange(len(rows_B)), rows_B] = -torch.inf
            near.append(close_BN.topk(min(NEIGHBOURS, len(self._square_N) - 1)).indices)
        return torch.cat(near)

    def regress(self, x_BF: Tensor) -> Tensor:
        """What the regression from features answers: float32 (B, L)."""
        x_BF = x_BF @ self._seen_FF
        product_BN = (x_BF.to(self._dtype) @ self._x_FN).float()
        kernel_BN = _kernel(product_BN, x_BF.square().sum(dim=1), self._square_N)
        # Low precision loses less of what is around 0.
        return ((kernel_BN - _USUAL).to(self._dtype) @ self._solution_NL).float() + _USUAL * self._sum_L


def _factor(x_NF: Tensor, at: Callable[[str], None]) -> Tensor:
    """The Cholesky factor (N, N) of the kernel between all videos plus RIDGE on its diagonal."""
    at(f"kernel of {len(x_NF):,} videos")
    square_N = x_NF.square().sum(dim=1)
    kernel_NN = _kernel(x_NF @ x_NF.T, square_N, square_N)
    kernel_NN.diagonal().add_(RIDGE)
    at("its factor")
    factor_NN = torch.linalg.cholesky(kernel_NN)
    at("regression from features to labels")
    return factor_NN


def inverse_diagonal(factor_NN: Tensor) -> Tensor:
    """The diagonal (N,) of the inverse of L L^T, for the lower triangle L = `factor_NN`.

    It is the squared lengths of the columns of L's inverse, found some at a time: above a column's own row they are
    zero. LAPACK's inverse takes eight times as long, and another matrix.
    """
    lengths = []
    for first in range(0, len(factor_NN), _COLUMNS):
        rest_RR = factor_NN[first:, first:]
        unit_RB = torch.eye(len(rest_RR), min(_COLUMNS, len(rest_RR)))
        lengths.append(torch.linalg.solve_triangular(rest_RR, unit_RB, upper=False).square().sum(dim=0))
    return torch.cat(lengths)


def relevance(x_NF: Tensor, solution_NL: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A matrix (F, F) for the features, which lengthens the directions in which the regression's answers change.

    A power of the mean over the first videos of J^T J, J being the answers' gradient (the recursive feature machine of
    Radhakrishnan et al. 2024, arXiv:2212.13881; its later rounds bring nothing here). Scaled so that two videos stay as
    far apart as they were, in the mean.

    Of f(x) = sum_i a_i exp(-g |x - x_i|^2) the gradient is 2 g sum_i a_i k_i (x_i - x).
    """
    random = torch.Generator().manual_seed(0)
    solution_ND = solution_NL @ torch.randn(solution_NL.shape[1], _DIRECTIONS, generator=random)
    asked_BF, square_N = x_NF[:_ASKED], x_NF.square().sum(dim=1)
    kernel_BN = _kernel(asked_BF @ x_NF.T, square_N[:_ASKED], square_N)
    answer_BD = kernel_BN @ solution_ND
    low_NF, low_DN = x_NF.to(dtype), solution_ND.T.to(dtype).contiguous()
    outer_FF = torch.zeros(x_NF.shape[1], x_NF.shape[1])
    for x_F, kernel_N, answer_D in zip(asked_BF, kernel_BN, answer_BD, strict=True):
        gradient_DF = ((low_DN * kernel_N.to(dtype)) @ low_NF).float() - answer_D[:, None] * x_F
        outer_FF.addmm_(gradient_DF.T, gradient_DF)
    values_F, vectors_FF = torch.linalg.eigh(outer_FF)
    share_F = (values_F / values_F[-1].clamp(min=_TINY)).clamp(min=0) + 1e-6
    seen_FF = (vectors_FF * share_F**RELEVANCE_POWER) @ vectors_FF.T
    return seen_FF * (_spread(x_NF) / _spread(x_NF @ seen_FF).clamp(min=_TINY)).sqrt()


_TINY = 1e-30


def _spread(x_NF: Tensor) -> Tensor:
    """The mean square of the videos' distance from their mean."""
    return (x_NF - x_NF.mean(dim=0)).square().sum(dim=1).mean()


def _kernel(product_BN: Tensor, square_B: Tensor, square_N: Tensor) -> Tensor:
    """exp(-GAMMA d^2) in the place of the inner products."""
    distance_BN = product_BN.mul_(-2).add_(square_N).add_(square_B[:, None]).clamp_(min=0)
    return distance_BN.mul_(-GAMMA).exp_()


def company(p_NL: Tensor, y_NL: Tensor) -> tuple[Tensor, Tensor]:
    """How labels go together, (L, L), by ridge regression of y - p on the roots of p; and what it makes of each video
    without that video's own labels: `with_company` (N, L).

    For the fitted r_i and the leverage h_i that is y_i - (y_i - p_i - r_i) / (1 - h_i), as above.
    """
    root_NL, missing_NL = p_NL.sqrt(), y_NL - p_NL
    gram_LL = root_NL.T @ root_NL
    gram_LL.diagonal().add_(COMPANY_RIDGE)
    factor_LL = torch.linalg.cholesky(gram_LL)
    company_LL = torch.cholesky_solve(root_NL.T @ missing_NL, factor_LL)
    leverage_N = torch.linalg.solve_triangular(factor_LL, root_NL.T, upper=False).square().sum(dim=0)
    return company_LL, y_NL - (missing_NL - root_NL @ company_LL) / (1 - leverage_N)[:, None]


def with_company(p_BL: Tensor, company_LL: Tensor) -> Tensor:
    """Probabilities of which each is corrected by the others of its video: float32 (B, L)."""
    return p_BL + (p_BL.sqrt().to(company_LL.dtype) @ company_LL).float()


def calibration(values_NL: Tensor, y_NL: Tensor) -> tuple[float, float]:
    """a and b for `calibrated`: the most likely ones (Platt 1999) for each video's highest values, by Newton's method.

    Regression on a few examples answers 0.05 where 0.01 is right, and 0.7 where 0.87 is.
    """
    top = values_NL.topk(min(KEPT, values_NL.shape[1]), dim=1)
    x = top.values.clamp(min=_FLOOR).log().double().flatten()
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    y = y_NL.gather(1, top.indices).flatten().double()
    coefficients = torch.tensor([2.0, 2.0], dtype=torch.double)  # about where they end
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(design @ coefficients)
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + 1e-6 * torch.eye(2, dtype=torch.double)
        step = torch.linalg.solve(curvature, design.T @ (y - p))
        coefficients = coefficients + step.clamp(-1, 1)
    a, b = coefficients.tolist()
    return a, b


def calibrated(values_BL: Tensor, odds: tuple[float, float]) -> Tensor:
    """Probabilities for what a regression answered: sigmoid(a log(value) + b), float32 (B, L)."""
    a, b = odds
    return values_BL.clamp(min=_FLOOR).log_().mul_(a).add_(b).sigmoid_()


_NEWTON_STEPS = 12


def _parts(count: int) -> list[Tensor]:
    """Equal parts of 0..count-1, drawn at random but the same each time, that memory has room for."""
    room = int(min(MOST_VIDEOS, math.sqrt(available_memory() / _BYTES)))
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
