"""The teacher against plain regressions and gradients in double precision."""

from __future__ import annotations

import pytest
import torch

from train.distillation import kernel
from train.distillation.kernel import AGOP_POWER, GAMMA, RIDGE, Speed, Teacher, average_gradient_outer_product


def test_answers_are_those_of_a_regression_in_the_metric_that_gradients_give() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=random), torch.rand(12, 3, generator=random).round()
    points = torch.randn(7, 5, generator=random)
    teacher = Teacher(x, y)
    seen = teacher._metric_FF.double()
    inner = torch.exp(-GAMMA * torch.cdist(x @ seen.float(), x @ seen.float()).double().square())
    outer = torch.exp(-GAMMA * torch.cdist(points.double() @ seen, x.double() @ seen).square())
    expected = outer @ torch.linalg.solve(inner + RIDGE * torch.eye(12, dtype=torch.double), y.double())
    torch.testing.assert_close(teacher.regress(points).double(), expected, rtol=1e-3, atol=1e-4)


def test_its_own_videos_count_for_the_calibration_as_if_they_had_not_been_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=random), torch.rand(12, 3, generator=random).round()
    seen: list[torch.Tensor] = []

    def calibration(values: torch.Tensor, truth: torch.Tensor) -> tuple[float, float]:
        seen.append(values)
        return 2.0, 2.0

    monkeypatch.setattr(kernel, "calibration", calibration)
    x_seen = (x @ Teacher(x, y)._metric_FF).double()
    for row in range(12):
        rest = torch.arange(12) != row
        inner = torch.exp(-GAMMA * torch.cdist(x_seen[rest], x_seen[rest]).square())
        outer = torch.exp(-GAMMA * torch.cdist(x_seen[row, None], x_seen[rest]).square())
        ridge = RIDGE * torch.eye(11, dtype=torch.double)
        expected = outer @ torch.linalg.solve(inner + ridge, y[rest].double())
        torch.testing.assert_close(seen[0][row, None].double(), expected, rtol=1e-3, atol=1e-3)


def test_it_is_the_mean_outer_product_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd, in all directions of the labels' space."""
    random = torch.Generator().manual_seed(0)
    x, solution = torch.randn(9, 4, generator=random), torch.randn(9, 3, generator=random)
    monkeypatch.setattr(kernel, "_DIRECTIONS", 200_000)
    found = average_gradient_outer_product(x, solution)

    def answer(point: torch.Tensor) -> torch.Tensor:
        return torch.exp(-GAMMA * (x - point).square().sum(dim=1)) @ solution

    outer = torch.zeros(4, 4)
    for point in x:
        jacobian = torch.autograd.functional.jacobian(answer, point)
        outer += jacobian.T @ jacobian
    values, vectors = torch.linalg.eigh(outer)
    expected = (vectors * (values / values[-1]) ** AGOP_POWER) @ vectors.T
    torch.testing.assert_close(found / found.norm(), expected / expected.norm(), rtol=0, atol=0.01)
    spread = [(points - points.mean(dim=0)).square().sum() for points in (x, x @ found)]
    torch.testing.assert_close(spread[0], spread[1])


def test_the_metric_finds_the_feature_that_matters() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=random)
    y = torch.stack([x[:, 2] > 0, x[:, 2] < -1], dim=1).float()
    weights = Teacher(x, y)._metric_FF.diagonal()
    assert weights[2] > 1.5 * weights[torch.arange(6) != 2].max()


def test_low_precision_changes_answers_little() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(200, 20, generator=random))
    y = (x @ torch.randn(20, 9, generator=random) > 0.4).float()
    exact, low = (Teacher(x, y, speed=Speed(bf16)).regress((x + x.roll(1, 0)) / 2) for bf16 in (False, True))
    torch.testing.assert_close(low, exact, rtol=0, atol=0.04)


def test_everything_is_computed_where_the_features_are() -> None:
    """Nothing is made on PyTorch's default device: "meta" here, whose tensors mix with no others."""
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=random), torch.rand(40, 3, generator=random).round()
    plain = Teacher(x, y)
    with torch.device("meta"):
        teacher = Teacher(x, y)
        found, near = teacher.answer(x), teacher.neighbours()
    assert torch.equal(found, plain.answer(x))
    assert torch.equal(near, plain.neighbours())
