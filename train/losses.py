"""The losses: the report's listwise cross-entropy of normalised sigmoids, softmax cross-entropy, binary cross-entropy.

Labels stay sparse. A video's targets are its label indices (P of them, padded with -1) and a weight for each. All
three losses are linear in the dense target y_j = sum of the weights whose index is j, so mixup needs no dense targets:
both videos' are appended and the weights shared out (`mixed`).

Shape suffixes: B videos in the batch, L labels, P targets of a video with their padding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

KERAS_EPSILON = 1e-7
"""Keras clips probabilities to [1e-7, 1 - 1e-7] before it takes their logarithm."""
LOG_FLOOR = -16.118095650958319  # log(KERAS_EPSILON)


@dataclass
class Targets:
    """Sparse targets: index_BP int64 with 0 for padding, weight_BP float32 with 0 for padding."""

    index_BP: Tensor
    weight_BP: Tensor


def listwise(logits_BL: Tensor, targets: Targets) -> Tensor:
    """The report's loss, mean over videos: Keras' categorical_crossentropy on sigmoid outputs.

    Keras divides the outputs by their sum, clips them and takes the cross-entropy with the multi-hot target as it is:
    p = sigmoid(z) / sum(sigmoid(z)), loss = -sum(y log clip(p)). Only the sum needs all labels; it counts as no smaller
    than float32's smallest normal number, where Keras would divide by zero.
    """
    logits_BL = logits_BL.float()
    total_B1 = torch.sigmoid(logits_BL).sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    log_p_BP = functional.logsigmoid(logits_BL.gather(1, targets.index_BP)) - total_B1.log()
    return -(targets.weight_BP * log_p_BP.clamp(min=LOG_FLOOR)).sum(dim=1).mean()


def softmax(logits_BL: Tensor, targets: Targets) -> Tensor:
    """Softmax cross-entropy, mean over videos; of a video with n labels each has 1/n of the target (`targets_of`)."""
    return -_picked(functional.log_softmax(logits_BL.float(), dim=1), targets).mean()


def bce(logits_BL: Tensor, targets: Targets) -> Tensor:
    """Binary cross-entropy, summed over labels, mean over videos: sum(softplus(z)) - sum(y z)."""
    logits_BL = logits_BL.float()
    return (functional.softplus(logits_BL).sum(dim=1) - _picked(logits_BL, targets)).mean()


LOSSES: dict[str, Callable[[Tensor, Targets], Tensor]] = {"listwise": listwise, "softmax": softmax, "bce": bce}


def targets_of(labels_BP: Tensor, loss: str) -> Targets:
    """Targets of label indices padded with -1: weight 1 each, or 1/n for the softmax of a video with n labels."""
    known_BP = labels_BP >= 0
    weight_BP = known_BP.float()
    if loss == "softmax":
        weight_BP = weight_BP / weight_BP.sum(dim=1, keepdim=True).clamp(min=1)
    return Targets(labels_BP.long().clamp(min=0), weight_BP)


def as_weighed(soft: Targets, loss: str) -> Targets:
    """Soft labels, whose weights are probabilities, as `targets_of` weighs labels: the softmax's sum to 1."""
    if loss != "softmax":
        return soft
    total_B1 = soft.weight_BP.sum(dim=1, keepdim=True).clamp(min=KERAS_EPSILON)
    return Targets(soft.index_BP, soft.weight_BP / total_B1)


def mixed(first: Targets, second: Targets, share_B1: Tensor) -> Targets:
    """Mixup's targets: `share_B1` of the first ones, the rest of the second ones."""
    return Targets(
        torch.cat([first.index_BP, second.index_BP], dim=1),
        torch.cat([first.weight_BP * share_B1, second.weight_BP * (1 - share_B1)], dim=1),
    )


def _picked(values_BL: Tensor, targets: Targets) -> Tensor:
    """The weighted sum (B,) of each video's values at its targets."""
    return (targets.weight_BP * values_BL.gather(1, targets.index_BP)).sum(dim=1)
