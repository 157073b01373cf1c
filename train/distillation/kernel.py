"""The teacher: kernel ridge regression from features to labels, then from labels to labels (docs/distillation.md).

Shape suffixes: N videos, F features, L labels, B points at a time, C closest videos, D directions, R rows left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from train.distillation.correlation import (
    calibrated,
    calibration,
    label_correlation,
    with_label_correlation,
)

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
_COLUMNS = 1024  # of a factor's inverse, at a time
_TINY = 1e-30


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

    The kernel sees the features through the `average_gradient_outer_product` of an earlier regression.
    """

    def __init__(
        self, x_NF: Tensor, y_NL: Tensor, at: Callable[[str], None] = lambda step: None, bf16: bool = False
    ) -> None:
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        some = torch.randperm(len(x_NF), generator=torch.Generator().manual_seed(0))[:_AGOP_VIDEOS]
        solution_NL = torch.cholesky_solve(y_NL[some], _factor(x_NF[some], at))
        at("which features matter")
        self._metric_FF = average_gradient_outer_product(x_NF[some], solution_NL, self._dtype)
        x_NF = x_NF @ self._metric_FF
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
        correlation_LL, alone_NL = label_correlation(p_NL, y_NL)
        self._correlation_LL = correlation_LL.to(self._dtype)
        self._correlation_odds = calibration(alone_NL, y_NL)

    def answer(self, x_BF: Tensor) -> Tensor:
        """Probabilities (B, L) for what `weighted` gives."""
        p_BL = calibrated(self.regress(x_BF), self._odds)
        return calibrated(with_label_correlation(p_BL, self._correlation_LL), self._correlation_odds)

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
        x_BF = x_BF @ self._metric_FF
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


def average_gradient_outer_product(x_NF: Tensor, solution_NL: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """A matrix (F, F) for the features, which lengthens the directions in which the regression's answers change.

    A power of the mean over the first videos of J^T J, J being the answers' gradient (the recursive feature machine of
    Radhakrishnan et al. 2024, arXiv:2212.13881; its later rounds bring nothing here). Scaled so that two videos stay as
    far apart as they were, in the mean.

    Of f(x) = sum_i a_i exp(-g |x - x_i|^2) the gradient is 2 g sum_i a_i k_i (x_i - x).
    """
    random = torch.Generator().manual_seed(0)
    solution_ND = solution_NL @ torch.randn(solution_NL.shape[1], _DIRECTIONS, generator=random)
    some_BF, square_N = x_NF[:_AGOP_GRADIENTS], x_NF.square().sum(dim=1)
    kernel_BN = _kernel(some_BF @ x_NF.T, square_N[:_AGOP_GRADIENTS], square_N)
    answer_BD = kernel_BN @ solution_ND
    low_NF, low_DN = x_NF.to(dtype), solution_ND.T.to(dtype).contiguous()
    outer_FF = torch.zeros(x_NF.shape[1], x_NF.shape[1])
    for x_F, kernel_N, answer_D in zip(some_BF, kernel_BN, answer_BD, strict=True):
        gradient_DF = ((low_DN * kernel_N.to(dtype)) @ low_NF).float() - answer_D[:, None] * x_F
        outer_FF.addmm_(gradient_DF.T, gradient_DF)
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
