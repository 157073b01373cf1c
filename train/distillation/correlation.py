"""What the teacher adds to its regression from features: the correlation of labels, and calibration of its answers.

Shape suffixes: N videos, L labels, B points at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from train.distillation.tiles import ROWS, Work, idle

SOFT_LABELS = 64
"""Labels of a point that are kept: the rest of 3,862 are next to nothing together."""
CORRELATION_RIDGE = 3.0
_FLOOR = 1e-4
_NEWTON_STEPS = 12


def label_correlation(
    p_NL: Tensor, y_NL: Tensor, work: Work | None = None, seconds: float = 0.0
) -> tuple[Tensor, Tensor]:
    """How labels are correlated, (L, L), by ridge regression of y - p on the roots of p; and what it makes of each
    video without that video's own labels: `with_label_correlation` (N, L).

    For the fitted r_i and the leverage h_i that is y_i - (y_i - p_i - r_i) / (1 - h_i), as above.
    """
    work, share = work or idle(), seconds / 3 / len(p_NL)
    gram_LL, product_LL = p_NL.new_zeros(2, p_NL.shape[1], p_NL.shape[1])
    for p_BL, y_BL in zip(p_NL.split(ROWS), y_NL.split(ROWS), strict=True):
        root_BL = p_BL.sqrt()
        gram_LL += root_BL.T @ root_BL
        product_LL += root_BL.T @ (y_BL - p_BL)
        work.add(2 * share * len(p_BL))
    gram_LL.diagonal().add_(CORRELATION_RIDGE)
    factor_LL = torch.linalg.cholesky(gram_LL)
    correlation_LL = torch.cholesky_solve(product_LL, factor_LL)
    alone_NL = torch.empty_like(p_NL)
    for p_BL, y_BL, alone_BL in zip(p_NL.split(ROWS), y_NL.split(ROWS), alone_NL.split(ROWS), strict=True):
        root_BL = p_BL.sqrt()
        leverage_B = torch.linalg.solve_triangular(factor_LL, root_BL.T, upper=False).square().sum(dim=0)
        missing_BL = y_BL - p_BL - root_BL @ correlation_LL
        alone_BL.copy_(y_BL - missing_BL / (1 - leverage_B)[:, None])
        work.add(share * len(p_BL))
    return correlation_LL, alone_NL


def with_label_correlation(p_BL: Tensor, correlation_LL: Tensor) -> Tensor:
    """Probabilities of which each is corrected by the others of its video: float32 (B, L)."""
    return p_BL + (p_BL.sqrt().to(correlation_LL.dtype) @ correlation_LL).float()


def calibration(values_NL: Tensor, y_NL: Tensor) -> tuple[float, float]:
    """a and b for `calibrated`: the most likely ones (Platt 1999) for each video's highest values, by Newton's method.

    Regression on a few examples answers 0.05 where 0.01 is right, and 0.7 where 0.87 is.
    """
    top = values_NL.topk(min(SOFT_LABELS, values_NL.shape[1]), dim=1)
    x = top.values.clamp(min=_FLOOR).log().double().flatten()
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    y = y_NL.gather(1, top.indices).flatten().double()
    coefficients = x.new_tensor([2.0, 2.0])  # about where they end
    eye = torch.eye(2, dtype=torch.double, device=x.device)
    for _ in range(_NEWTON_STEPS):
        p = torch.sigmoid(design @ coefficients)
        curvature = design.T @ (design * (p * (1 - p))[:, None]) + 1e-6 * eye
        step = torch.linalg.solve(curvature, design.T @ (y - p))
        coefficients = coefficients + step.clamp(-1, 1)
    a, b = coefficients.tolist()
    return a, b


def calibrated(values_BL: Tensor, odds: tuple[float, float]) -> Tensor:
    """Probabilities for what a regression answered: sigmoid(a log(value) + b), float32 (B, L)."""
    a, b = odds
    return values_BL.clamp(min=_FLOOR).log_().mul_(a).add_(b).sigmoid_()
