"""Soft labels: what the other training videos say about mixtures of two, by kernel ridge regression.

Half of the labels have a handful of training videos, and a network learns those by heart: what it then says of its own
training videos is of no use to another one. On a few ten thousand videos kernel ridge regression labels better than the
networks do; better still when a second regression, from labels to labels, adds what company they keep. And in closed
form it says what it would answer if some videos had not been there. So it answers mixtures of two training videos
(mixup, Zhang et al. 2017, arXiv:1710.09412) without those two, and its answers become the targets (`TrainConfig.soft`):
distillation (Hinton et al. 2015, arXiv:1503.02531) from a teacher that has never seen the labels that it teaches, on
inputs between the videos, where there is no end of them (Beyer et al. 2021, arXiv:2106.05237).

Shape suffixes: N videos, F features, L labels, B mixtures at a time, P passes, K soft labels of a mixture.
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
PASSES = 10
"""Mixtures of each video; an epoch uses one, and after so many they come again."""
_MIXTURES = 1024
_USUAL = 0.22  # what the kernel mostly is
_FLOOR = 1e-4
_FORMAT = 2


@dataclass(frozen=True)
class SoftLabels:
    """Mixtures of n videos, P for each, and their likeliest labels.

    partner: int32 (P, n), the video that each is mixed with. share: float32 (P, n), of the video itself in the mixture.
    index: int32 (P, n, K), distinct. weight: float16 (P, n, K), their probabilities.
    """

    partner: Tensor
    share: Tensor
    index: Tensor
    weight: Tensor


def kept_soft_labels(
    videos: Videos, labels: int, mixup: float, folder: Path | None, check: Callable[[], None]
) -> SoftLabels:
    """`soft_labels`, from a file in `folder` where one was left for the same videos, else left there.

    Raises OutputError when the file cannot be written, ModelError when it is damaged, and what `check` raises.
    """
    if folder is None:
        return soft_labels(videos, labels, mixup, check)
    path = folder / f"soft-{_name(videos, labels, mixup)}.safetensors"
    if not path.exists():
        checkpoint.write(path, vars(soft_labels(videos, labels, mixup, check)), {})
    tensors, _ = checkpoint.read(path)
    return SoftLabels(**tensors)


def _name(videos: Videos, labels: int, mixup: float) -> str:
    """Hex digest of what the soft labels follow from: ids, labels, and enough of the features to tell them apart."""
    digest = hashlib.sha256(repr((_FORMAT, PASSES, labels, mixup, videos.fingerprint())).encode())
    for values in videos.features:
        digest.update(np.ascontiguousarray(values[:64]).tobytes())
    return digest.hexdigest()[:16]


def soft_labels(
    videos: Videos, labels: int, mixup: float, check: Callable[[], None] = lambda: None, bf16: bool | None = None
) -> SoftLabels:
    """PASSES mixtures of each video with another, and their labels as calibrated probabilities.

    Args:
        videos: the training videos. More than PART, or than fit into memory, are regressed on in parts drawn at random.
        labels: number of labels, L.
        mixup: alpha of the Beta(alpha, alpha) that the shares are drawn from; 0 mixes nothing.
        check: called between the steps, which take minutes, to stop by raising.
        bf16: whether products are taken in bfloat16; None where the CPU is fast at it.
    """
    bf16 = bf16_is_fast(torch.device("cpu")) if bf16 is None else bf16
    shape = PASSES, len(videos)
    random = np.random.default_rng(0)
    soft = SoftLabels(
        torch.zeros(shape, dtype=torch.int32),
        torch.from_numpy((random.beta(mixup, mixup, shape) if mixup else np.ones(shape)).astype(np.float32)),
        torch.zeros(*shape, min(KEPT, labels), dtype=torch.int32),
        torch.zeros(*shape, min(KEPT, labels), dtype=torch.float16),
    )
    ratios = fisher_ratios(videos)
    for rows in _parts(len(videos)):
        x_NF = weighted([values[rows.numpy()] for values in videos.features], ratios)
        teacher = Teacher(x_NF, _multi_hot(videos.labels[rows.numpy()], labels), check, bf16)
        for number in range(PASSES):
            partner = torch.from_numpy(random.permutation(len(rows)))
            soft.partner[number, rows] = rows[partner].int()
            for own in torch.arange(len(rows)).split(_MIXTURES):
                check()
                share = soft.share[number, rows[own]].numpy()[:, None]
                mixture = [
                    share * values[rows[own].numpy()] + (1 - share) * values[rows[partner[own]].numpy()]
                    for values in videos.features
                ]
                top = teacher.answer(weighted(mixture, ratios), own, partner[own]).topk(soft.index.shape[2], dim=1)
                soft.index[number, rows[own]] = top.indices.int()
                soft.weight[number, rows[own]] = top.values.half()
    return soft


def weighted(inputs: Sequence[NDArray[np.float32]], ratios: Sequence[Tensor]) -> Tensor:
    """The inputs side by side, float32 (B, F): features weighted by their Fisher ratios, vectors of a fixed length."""
    widest = max(values.shape[1] for values in inputs)
    parts = []
    for values, ratio in zip(inputs, ratios, strict=True):
        scaled = torch.from_numpy(values) * (ratio / ratio.mean()) ** FISHER_POWER
        parts.append((values.shape[1] / widest) ** LENGTH_POWER * torch.nn.functional.normalize(scaled))
    return torch.cat(parts, dim=1)


class Teacher:
    """Ridge regression with a Gaussian kernel from features to labels, then from labels to labels, both calibrated."""

    def __init__(
        self, x_NF: Tensor, y_NL: Tensor, check: Callable[[], None] = lambda: None, bf16: bool = False
    ) -> None:
        self._dtype = torch.bfloat16 if bf16 else torch.float32
        self._square_N = x_NF.square().sum(dim=1)
        self._x_FN = x_NF.to(self._dtype).T.contiguous()
        check()
        kernel_NN = _kernel(torch.mm(x_NF, x_NF.T), self._square_N, self._square_N)
        kernel_NN.diagonal().add_(RIDGE)
        check()
        factor_NN = torch.linalg.cholesky(kernel_NN)
        del kernel_NN
        check()
        self._solution_NL = torch.cholesky_solve(y_NL, factor_NN)
        check()
        self._inverse_NN = torch.cholesky_inverse(factor_NN)
        del factor_NN
        check()
        self._low_NL, self._sum_L = self._solution_NL.to(self._dtype), self._solution_NL.sum(dim=0)
        alone_NL = y_NL - self._solution_NL / self._inverse_NN.diagonal()[:, None]
        self._odds = calibration(alone_NL, y_NL)
        p_NL = calibrated(alone_NL, self._odds)
        company_LL, alone_NL = company(p_NL, y_NL)
        self._company_LL = company_LL.to(self._dtype)
        self._company_odds = calibration(alone_NL, y_NL)

    def answer(self, x_BF: Tensor, first_B: Tensor, second_B: Tensor) -> Tensor:
        """Probabilities (B, L) for x_BF as if the videos first_B and second_B, rows of x_NF, had not been there."""
        p_BL = calibrated(self.regress(x_BF, first_B, second_B), self._odds)
        return calibrated(with_company(p_BL, self._company_LL), self._company_odds)

    def regress(self, x_BF: Tensor, first_B: Tensor, second_B: Tensor) -> Tensor:
        """What the first regression answers without those two: float32 (B, L).

        With V = (K + ridge I)^-1 and A = V y, leaving out the videos S gives k^T (A - V_S V_SS^-1 A_S), in which S has
        no weight left (block inversion; for one video Rasmussen and Williams 2006, "Gaussian Processes for Machine
        Learning", equation 5.12).
        """
        kernel_BN = _kernel((x_BF.to(self._dtype) @ self._x_FN).float(), x_BF.square().sum(dim=1), self._square_N)
        # Low precision loses less of what is around 0.
        answer_BL = ((kernel_BN - _USUAL).to(self._dtype) @ self._low_NL).float() + _USUAL * self._sum_L
        v1_BN, v2_BN = self._inverse_NN[first_B], self._inverse_NN[second_B]
        u1_B, u2_B = (kernel_BN * v1_BN).sum(dim=1), (kernel_BN * v2_BN).sum(dim=1)
        one = torch.arange(len(first_B))
        a_B, b_B, d_B = v1_BN[one, first_B], v1_BN[one, second_B], v2_BN[one, second_B]
        same_B = first_B == second_B
        b_B, d_B = b_B.masked_fill(same_B, 0.0), d_B.masked_fill(same_B, 1.0)
        u2_B = u2_B.masked_fill(same_B, 0.0)
        determinant_B = a_B * d_B - b_B * b_B
        w1_B, w2_B = (d_B * u1_B - b_B * u2_B) / determinant_B, (a_B * u2_B - b_B * u1_B) / determinant_B
        answer_BL -= w1_B[:, None] * self._solution_NL[first_B]
        answer_BL -= w2_B[:, None] * self._solution_NL[second_B]
        return answer_BL


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
