"""Label correlation against plain regression in double precision, and calibration against known odds."""

from __future__ import annotations

import pytest
import torch

from train.distillation.correlation import (
    CORRELATION_RIDGE,
    calibrated,
    calibration,
    label_correlation,
    with_label_correlation,
)


def test_correlation_is_learned_from_the_other_videos() -> None:
    random = torch.Generator().manual_seed(0)
    p, y = torch.rand(12, 3, generator=random), torch.rand(12, 3, generator=random).round()
    learned, alone = label_correlation(p, y)
    a, missing = p.double().sqrt(), (y - p).double()
    for left in [*range(12), None]:
        rest = torch.arange(12) != left if left is not None else torch.ones(12, dtype=torch.bool)
        gram = a[rest].T @ a[rest] + CORRELATION_RIDGE * torch.eye(3, dtype=torch.double)
        weights = torch.linalg.solve(gram, a[rest].T @ missing[rest])
        if left is None:
            torch.testing.assert_close(learned.double(), weights, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(
                with_label_correlation(p, learned).double(), p + a @ weights, rtol=1e-4, atol=1e-5
            )
        else:
            torch.testing.assert_close(alone[left].double(), p[left] + a[left] @ weights, rtol=1e-4, atol=1e-5)


def test_a_label_is_expected_with_those_that_it_is_correlated_with() -> None:
    random = torch.Generator().manual_seed(0)
    y = torch.zeros(200, 2)
    y[:, 0] = torch.rand(200, generator=random).round()
    y[:, 1] = y[:, 0]
    p = torch.stack([0.8 * y[:, 0] + 0.1, torch.full((200,), 0.5)], dim=1)
    found = with_label_correlation(p, label_correlation(p, y)[0])
    assert found[y[:, 0] == 1, 1].mean() > found[y[:, 0] == 0, 1].mean() + 0.5


def test_calibration_finds_the_odds() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.rand(400, 64, generator=random).clamp(min=0.01)
    truth = torch.sigmoid(2.2 * values.log() + 2.0)
    hits = (torch.rand(400, 64, generator=random) < truth).float()
    torch.testing.assert_close(calibrated(values, calibration(values, hits)), truth, atol=0.02, rtol=0)


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_calibration_where_all_or_nothing_is_a_label(hit: float) -> None:
    values = torch.rand(9, 4)
    assert calibrated(values, calibration(values, torch.full((9, 4), hit))).isfinite().all()
