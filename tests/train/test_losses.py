"""Each loss against a dense, naive version in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from train.losses import LOSSES, Targets, as_weighed, mixed, targets_of

LABELS = [[0, 3], [5, -1], [2, 6], [-1, -1]]


def naive(loss: str, logits: Tensor, y: Tensor) -> Tensor:
    """The definitions as Keras writes them, on dense targets."""
    sigmoid = logits.double().sigmoid()
    if loss == "bce":
        return -(y * sigmoid.log() + (1 - y) * (1 - sigmoid).log()).sum(1).mean()
    if loss == "softmax":
        return -(y * logits.double().softmax(1).log()).sum(1).mean()
    p = (sigmoid / sigmoid.sum(1, keepdim=True)).clamp(1e-7, 1 - 1e-7)
    return -(y * p.log()).sum(1).mean()


def dense(loss: str, labels: list[list[int]], width: int) -> Tensor:
    y = torch.zeros(len(labels), width, dtype=torch.double)
    for row, indices in enumerate(labels):
        known = [index for index in indices if index >= 0]
        y[row, known] = 1 / len(known) if loss == "softmax" and known else 1
    return y


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("spread", [1, 12])
def test_sparse_loss_and_gradient_equal_the_dense_ones(loss: str, spread: float) -> None:
    logits = (spread * torch.randn(4, 7, generator=torch.Generator().manual_seed(0))).requires_grad_()
    sparse = LOSSES[loss](logits, targets_of(torch.tensor(LABELS), loss))
    (gradient,) = torch.autograd.grad(sparse, logits)
    expected = naive(loss, logits, dense(loss, LABELS, 7))
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(sparse.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_mixup_is_the_loss_of_mixed_dense_targets(loss: str) -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
    partner, share = torch.tensor([2, 0, 3, 1]), torch.tensor([[0.3], [0.9], [0.0], [0.5]])
    y = dense(loss, LABELS, 7)
    first, second = (targets_of(labels, loss) for labels in (torch.tensor(LABELS), torch.tensor(LABELS)[partner]))
    sparse = LOSSES[loss](logits, mixed(first, second, share))
    expected = naive(loss, logits, share * y + (1 - share) * y[partner])
    torch.testing.assert_close(sparse.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_labels_are_the_loss_of_dense_targets(loss: str) -> None:
    random = torch.Generator().manual_seed(1)
    logits, weight = torch.randn(4, 7, generator=random), torch.rand(4, 3, generator=random)
    index = torch.tensor([[0, 1, 2], [5, 3, 0], [6, 2, 1], [4, 5, 6]])
    soft_y = torch.zeros(4, 7, dtype=torch.double).scatter_(1, index, weight.double())
    if loss == "softmax":
        soft_y = soft_y / soft_y.sum(1, keepdim=True)
    expected = naive(loss, logits, soft_y)
    torch.testing.assert_close(
        LOSSES[loss](logits, as_weighed(Targets(index, weight), loss)).double(), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("value", [-1e4, 1e4])
def test_no_logit_is_too_large(loss: str, value: float) -> None:
    logits = torch.full((4, 7), value, requires_grad=True)
    result = LOSSES[loss](logits, targets_of(torch.tensor(LABELS), loss))
    result.backward()
    assert result.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_listwise_by_hand() -> None:
    """Equal logits: p is 1/L for each label, so two labels cost 2 log L."""
    loss = LOSSES["listwise"](torch.zeros(1, 8), targets_of(torch.tensor([[1, 4]]), "listwise"))
    assert loss.item() == pytest.approx(2 * torch.tensor(8.0).log().item())
