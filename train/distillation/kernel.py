"""The teacher: kernel ridge regression from features to labels, then from labels to labels (docs/distillation.md).

Shape suffixes: N videos, F features, L labels, B points at a time, C closest videos, D directions, R rows left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from train.distillation.correlation import (
    calibrated,
    calibration,
    label_correlation,
    with_label_correlation,
)
from train.distillation.tiles import ROWS, Work, cholesky_, idle, inverse_diagonal, solve

CPU = torch.device("cpu")
RIDGE = 0.1
GAMMA = 0.6
"""The kernel is exp(-GAMMA d^2)."""
FISHER_POWER = 0.75
LENGTH_POWER = 1 / 3
"""An input's vectors have a length that grows with its width to this power: 1 for mean_rgb, 1/2 for mean_audio."""
AGOP_POWER = 0.3
NEIGHBOURS = 10
_POINTS = 1024  # at a time
_AGOP_VIDEOS = 10_000  # drawn at random, of the regression whose gradients are taken
_AGOP_GRADIENTS = 2000  # at the first of these
_DIRECTIONS = 256  # of the labels' space, drawn at random, in which the gradients are taken
_USUAL = 0.22  # what the kernel mostly is
_TINY = 1e-30


def weighted(inputs: Sequence[Tensor], ratios: Sequence[Tensor]) -> Tensor:
    """The inputs side by side, float32 (B, F): features weighted by their Fisher ratios, vectors of a fixed length."""
    widest = max(values.shape[1] for values in inputs)
    parts = []
    for values, ratio in zip(inputs, ratios, strict=True):
        scaled = values * (ratio / ratio.mean()) ** FISHER_POWER
        parts.append((values.shape[1] / widest) ** LENGTH_POWER * torch.nn.functional.normalize(scaled))
    return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class Seconds:
    """What the steps of one regression take."""

    kernel: float
    factor: float
    solve: float
    inverse: float
    gradients: float
    correlation: float


@dataclass(frozen=True)
class Speed:
    """Operations a second that a device does in products of float32 and of the teacher's lower precision.

    bf16: whether that is bfloat16.
    """

    bf16: bool = False
    single: float = math.inf
    low: float = math.inf
    device: torch.device = CPU

    @staticmethod
    def measure(bf16: bool, device: torch.device = CPU) -> Speed:
        """By two products of a few tens of milliseconds at most."""
        low = torch.bfloat16 if bf16 else torch.float32
        return Speed(bf16, _rate(torch.float32, device), _rate(low, device), device)

    def of(self, videos: int, features: int, labels: int) -> Seconds:
        """A regression's steps."""
        square, cube = videos**2 / self.single, videos**3 / self.single
        each = 2 * min(videos, _AGOP_GRADIENTS) * _DIRECTIONS * features
        gradients = each * videos / self.low + each * features / self.single
        correlation = (6 * videos * labels**2 + labels**3) / self.single
        return Seconds(2 * features * square, cube / 3, 2 * labels * square, cube / 3, gradients, correlation)

    def fit(self, videos: int, features: int, labels: int) -> float:
        """Seconds that a Teacher takes to learn."""
        first, second = self.of(min(videos, _AGOP_VIDEOS), features, labels), self.of(videos, features, labels)
        begin = first.kernel + first.factor + first.solve + first.gradients
        return begin + second.kernel + second.factor + second.solve + second.inverse + second.correlation

    def answer(self, points: int, videos: int, features: int, labels: int) -> float:
        """Seconds that it takes for so many points."""
        return 2 * points * (videos * (features + labels) + labels**2 + features**2) / self.low


def _rate(dtype: torch.dtype, device: torch.device) -> float:
    cuda, best = device.type == "cuda", math.inf
    size = 8192 if cuda else 1024
    a = torch.ones(size, size, dtype=dtype, device=device)
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        if cuda:
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Teacher:
    """Ridge regression with a Gaussian kernel from features to labels, then from labels to labels, both calibrated.

    It learns and answers on the device of the features that it is given; what is drawn at random is drawn on the host.

    The kernel sees the features through the `average_gradient_outer_product` of an earlier regression.
    """

    def __init__(self, x_NF: Tensor, y_NL: Tensor, work: Work | None = None, speed: Speed | None = None) -> None:
        work, speed = work or idle(), speed or Speed()
        features, labels = x_NF.shape[1], y_NL.shape[1]
        first, second = (speed.of(videos, features, labels) for videos in (min(len(x_NF), _AGOP_VIDEOS), len(x_NF)))
        self._dtype = torch.bfloat16 if speed.bf16 else torch.float32
        some = torch.randperm(len(x_NF), generator=torch.Generator().manual_seed(0), device=CPU)[:_AGOP_VIDEOS]
        some = some.to(x_NF.device)
        factor_NN = _factor(x_NF[some], work, first)
        work.begin("regression from features to labels")
        solution_NL = solve(factor_NN, y_NL[some], work, first.solve)
        work.begin("which features matter")
        self._metric_FF = average_gradient_outer_product(x_NF[some], solution_NL, self._dtype, work, first.gradients)
        x_NF = x_NF @ self._metric_FF
        factor_NN = _factor(x_NF, work, second)
        work.begin("regression from features to labels")
        solution_NL = solve(factor_NN, y_NL, work, second.solve)
        work.begin("its videos as if they had not been there")
        # What the regression would answer for a video without that video (Rasmussen and Williams 2006, "Gaussian
        # Processes for Machine Learning", equation 5.12).
        alone_NL = y_NL - solution_NL / inverse_diagonal(factor_NN, work, second.inverse)[:, None]
        del factor_NN
        self._square_N = x_NF.square().sum(dim=1)
        self._x_FN = x_NF.to(self._dtype).T.contiguous()
        self._solution_NL, self._sum_L = solution_NL.to(self._dtype), solution_NL.sum(dim=0)
        self._odds = calibration(alone_NL, y_NL)
        p_NL = calibrated(alone_NL, self._odds)
        work.begin("regression from labels to labels")
        correlation_LL, alone_NL = label_correlation(p_NL, y_NL, work, second.correlation)
        self._correlation_LL = correlation_LL.to(self._dtype)
        self._correlation_odds = calibration(alone_NL, y_NL)

    def answer(self, x_BF: Tensor) -> Tensor:
        """Probabilities (B, L) for what `weighted` gives."""
        p_BL = calibrated(self.regress(x_BF), self._odds)
        return calibrated(with_label_correlation(p_BL, self._correlation_LL), self._correlation_odds)

    def neighbours(self, work: Work | None = None) -> Tensor:
        """Of each video the NEIGHBOURS closest to it as the kernel sees them, or all others: int64 (N, C)."""
        near, work = [], work or idle()
        for rows_B in torch.arange(len(self._square_N), device=self._square_N.device).split(_POINTS):
            close_BN = 2 * (self._x_FN.T[rows_B] @ self._x_FN).float() - self._square_N
            close_BN[torch.arange(len(rows_B), device=rows_B.device), rows_B] = -torch.inf
            work.add(0)
            near.append(close_BN.topk(min(NEIGHBOURS, len(self._square_N) - 1)).indices)
        return torch.cat(near)

    def regress(self, x_BF: Tensor) -> Tensor:
        """What the regression from features answers: float32 (B, L)."""
        x_BF = x_BF @ self._metric_FF
        product_BN = (x_BF.to(self._dtype) @ self._x_FN).float()
        kernel_BN = _kernel(product_BN, x_BF.square().sum(dim=1), self._square_N)
        # Low precision loses less of what is around 0.
        return ((kernel_BN - _USUAL).to(self._dtype) @ self._solution_NL).float() + _USUAL * self._sum_L


def _factor(x_NF: Tensor, work: Work, seconds: Seconds) -> Tensor:
    """The Cholesky factor (N, N) of the kernel between all videos plus RIDGE on its diagonal."""
    count, square_N = len(x_NF), x_NF.square().sum(dim=1)
    work.begin(f"kernel of {count:,} videos")
    kernel_NN = x_NF.new_empty(count, count)
    for rows_BN, x_BF, square_B in zip(kernel_NN.split(ROWS), x_NF.split(ROWS), square_N.split(ROWS), strict=True):
        rows_BN.copy_(_kernel(x_BF @ x_NF.T, square_B, square_N))
        work.add(seconds.kernel * len(x_BF) / count)
    kernel_NN.diagonal().add_(RIDGE)
    work.begin(f"its factor, {count:,} videos")
    return cholesky_(kernel_NN, work, seconds.factor)


def average_gradient_outer_product(
    x_NF: Tensor,
    solution_NL: Tensor,
    dtype: torch.dtype = torch.float32,
    work: Work | None = None,
    seconds: float = 0.0,
) -> Tensor:
    """A matrix (F, F) for the features, which lengthens the directions in which the regression's answers change.

    A power of the mean over the first videos of J^T J, J being the answers' gradient (the recursive feature machine of
    Radhakrishnan et al. 2024, arXiv:2212.13881; its later rounds bring nothing here). Scaled so that two videos stay as
    far apart as they were, in the mean.

    Of f(x) = sum_i a_i exp(-g |x - x_i|^2) the gradient is 2 g sum_i a_i k_i (x_i - x).
    """
    work, random = work or idle(), torch.Generator().manual_seed(0)
    directions_LD = torch.randn(solution_NL.shape[1], _DIRECTIONS, generator=random, device=CPU)
    solution_ND = solution_NL @ directions_LD.to(solution_NL.device)
    some_BF, square_N = x_NF[:_AGOP_GRADIENTS], x_NF.square().sum(dim=1)
    kernel_BN = _kernel(some_BF @ x_NF.T, square_N[:_AGOP_GRADIENTS], square_N)
    answer_BD = kernel_BN @ solution_ND
    low_NF, low_DN = x_NF.to(dtype), solution_ND.T.to(dtype).contiguous()
    outer_FF = x_NF.new_zeros(x_NF.shape[1], x_NF.shape[1])
    for x_F, kernel_N, answer_D in zip(some_BF, kernel_BN, answer_BD, strict=True):
        gradient_DF = ((low_DN * kernel_N.to(dtype)) @ low_NF).float() - answer_D[:, None] * x_F
        outer_FF.addmm_(gradient_DF.T, gradient_DF)
        work.add(seconds / len(some_BF))
    values_F, vectors_FF = torch.linalg.eigh(outer_FF)
    share_F = (values_F / values_F[-1].clamp(min=_TINY)).clamp(min=0) + 1e-6
    metric_FF = (vectors_FF * share_F**AGOP_POWER) @ vectors_FF.T
    return metric_FF * (_variance(x_NF) / _variance(x_NF @ metric_FF).clamp(min=_TINY)).sqrt()


def _variance(x_NF: Tensor) -> Tensor:
    """The mean square of the videos' distance from their mean."""
    return (x_NF - x_NF.mean(dim=0)).square().sum(dim=1).mean()


def _kernel(product_BN: Tensor, square_B: Tensor, square_N: Tensor) -> Tensor:
    """exp(-GAMMA d^2) in the place of the inner products."""
    distance_BN = product_BN.mul_(-2).add_(square_N).add_(square_B[:, None]).clamp_(min=0)
    return distance_BN.mul_(-GAMMA).exp_()
