"""Soft labels against regressions that really leave each video out, and what they are kept in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scorer.errors import ModelError
from tests.train.shards import LABELS, videos
from train import kernel
from train.kernel import (
    COMPANY_RIDGE,
    GAMMA,
    RIDGE,
    calibrated,
    kept_soft_labels,
    leave_one_out,
    soft_labels,
    with_company,
)


def never() -> None:
    pass


def test_each_answer_is_that_of_a_regression_without_the_video() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=random), torch.rand(12, 3, generator=random).round()
    found = leave_one_out(x, y)
    distance = torch.cdist(x.double(), x.double())
    k = torch.exp(-GAMMA * distance.square())
    for left in range(12):
        rest = torch.arange(12) != left
        inner = k[rest][:, rest] + RIDGE * torch.eye(11, dtype=torch.double)
        expected = k[left, rest] @ torch.linalg.solve(inner, y[rest].double())
        torch.testing.assert_close(found[left].double(), expected, rtol=1e-4, atol=1e-5)


def test_company_is_learned_from_the_other_videos() -> None:
    random = torch.Generator().manual_seed(0)
    p, y = torch.rand(12, 3, generator=random), torch.rand(12, 3, generator=random).round()
    found = with_company(p, y)
    a, missing = p.double().sqrt(), (y - p).double()
    for left in range(12):
        rest = torch.arange(12) != left
        gram = a[rest].T @ a[rest] + COMPANY_RIDGE * torch.eye(3, dtype=torch.double)
        expected = p[left] + a[left] @ torch.linalg.solve(gram, a[rest].T @ missing[rest])
        torch.testing.assert_close(found[left].double(), expected, rtol=1e-4, atol=1e-5)


def test_a_label_that_keeps_company_is_expected_with_it() -> None:
    random = torch.Generator().manual_seed(0)
    y = torch.zeros(200, 2)
    y[:, 0] = torch.rand(200, generator=random).round()
    y[:, 1] = y[:, 0]
    p = torch.stack([0.8 * y[:, 0] + 0.1, torch.full((200,), 0.5)], dim=1)
    found = with_company(p, y)
    assert found[y[:, 0] == 1, 1].mean() > found[y[:, 0] == 0, 1].mean() + 0.5


def dense(soft: kernel.SoftLabels) -> torch.Tensor:
    return torch.zeros(len(soft.index), LABELS).scatter_(1, soft.index.long(), soft.weight)


def test_they_know_the_labels() -> None:
    made = videos(400)
    soft = soft_labels(made, LABELS)
    own = dense(soft).gather(1, torch.from_numpy(made.labels).long().clamp(min=0))[torch.from_numpy(made.labels >= 0)]
    assert own.mean() > 3 * dense(soft).mean()
    assert soft.weight.min() >= 0
    assert soft.weight.max() <= 1
    assert dense(soft).sum() == pytest.approx((made.labels >= 0).sum(), rel=0.02)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_videos_have_soft_labels_too(count: int) -> None:
    soft = soft_labels(videos(count), LABELS)
    assert soft.weight.isfinite().all()


def test_parts_cover_all_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PART", 40)
    assert sorted(torch.cat(kernel._parts(100)).tolist()) == list(range(100))
    assert max(map(len, kernel._parts(100))) <= 40
    assert dense(soft_labels(videos(100), LABELS)).sum(1).min() > 0


def test_calibration_finds_the_odds() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.rand(400, 64, generator=random).clamp(min=0.01)
    truth = torch.sigmoid(2.2 * values.log() + 2.0)
    hits = (torch.rand(400, 64, generator=random) < truth).float()
    torch.testing.assert_close(calibrated(values, hits), truth, atol=0.02, rtol=0)


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_calibration_where_all_or_nothing_is_a_label(hit: float) -> None:
    assert calibrated(torch.rand(9, 4), torch.full((9, 4), hit)).isfinite().all()


def test_kept_soft_labels_are_read_and_not_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kept_soft_labels(videos(50), LABELS, tmp_path, never)
    monkeypatch.setattr(kernel, "soft_labels", lambda *_: pytest.fail("found again"))
    again = kept_soft_labels(videos(50), LABELS, tmp_path, never)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.index, again.index)


def test_other_videos_have_other_soft_labels(tmp_path: Path) -> None:
    changed = videos(50)
    changed.features[0][3] += 1
    for made in (videos(50), videos(50, seed=1), changed):
        kept_soft_labels(made, LABELS, tmp_path, never)
    assert len(list(tmp_path.iterdir())) == 3


def test_damaged_soft_labels_are_named(tmp_path: Path) -> None:
    kept_soft_labels(videos(50), LABELS, tmp_path, never)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match=path.name):
        kept_soft_labels(videos(50), LABELS, tmp_path, never)
