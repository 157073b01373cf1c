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
    SoftLabels,
    Teacher,
    calibrated,
    calibration,
    company,
    kept_soft_labels,
    soft_labels,
    with_company,
)

MIXUP = 0.6


def never() -> None:
    pass


def test_each_answer_is_that_of_a_regression_without_the_two_videos() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=random), torch.rand(12, 3, generator=random).round()
    first, second = torch.arange(12), torch.randperm(12, generator=random)
    second[4] = 4
    mixtures = torch.stack([0.7 * x[i] + 0.3 * x[j] for i, j in zip(first, second, strict=True)])
    found = Teacher(x, y).regress(mixtures.clone(), first, second)
    inner = torch.exp(-GAMMA * torch.cdist(x.double(), x.double()).square()) + RIDGE * torch.eye(12, dtype=torch.double)
    outer = torch.exp(-GAMMA * torch.cdist(mixtures.double(), x.double()).square())
    for row in range(12):
        rest = torch.tensor([i for i in range(12) if i not in (first[row], second[row])])
        expected = outer[row, rest] @ torch.linalg.solve(inner[rest][:, rest], y[rest].double())
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-4, atol=1e-5)


def test_low_precision_changes_answers_little() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(200, 20, generator=random))
    y = (x @ torch.randn(20, 9, generator=random) > 0.4).float()
    mixtures, first, second = (x + x.roll(1, 0)) / 2, torch.arange(200), torch.arange(200).roll(1)
    exact, low = (Teacher(x, y, bf16=bf16).regress(mixtures.clone(), first, second) for bf16 in (False, True))
    torch.testing.assert_close(low, exact, rtol=0, atol=0.04)


def test_company_is_learned_from_the_other_videos() -> None:
    random = torch.Generator().manual_seed(0)
    p, y = torch.rand(12, 3, generator=random), torch.rand(12, 3, generator=random).round()
    learned, alone = company(p, y)
    a, missing = p.double().sqrt(), (y - p).double()
    for left in [*range(12), None]:
        rest = torch.arange(12) != left if left is not None else torch.ones(12, dtype=torch.bool)
        gram = a[rest].T @ a[rest] + COMPANY_RIDGE * torch.eye(3, dtype=torch.double)
        weights = torch.linalg.solve(gram, a[rest].T @ missing[rest])
        if left is None:
            torch.testing.assert_close(learned.double(), weights, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(with_company(p, learned).double(), p + a @ weights, rtol=1e-4, atol=1e-5)
        else:
            torch.testing.assert_close(alone[left].double(), p[left] + a[left] @ weights, rtol=1e-4, atol=1e-5)


def test_a_label_that_keeps_company_is_expected_with_it() -> None:
    random = torch.Generator().manual_seed(0)
    y = torch.zeros(200, 2)
    y[:, 0] = torch.rand(200, generator=random).round()
    y[:, 1] = y[:, 0]
    p = torch.stack([0.8 * y[:, 0] + 0.1, torch.full((200,), 0.5)], dim=1)
    found = with_company(p, company(p, y)[0])
    assert found[y[:, 0] == 1, 1].mean() > found[y[:, 0] == 0, 1].mean() + 0.5


def dense(soft: SoftLabels) -> torch.Tensor:
    """(P, N, L)"""
    return torch.zeros(*soft.share.shape, LABELS).scatter_(2, soft.index.long(), soft.weight.float())


def test_they_know_the_labels_of_both_videos() -> None:
    made = videos(400)
    soft = soft_labels(made, LABELS, MIXUP)
    y = torch.zeros(400, LABELS + 1).scatter_(1, torch.from_numpy(made.labels).long() % (LABELS + 1), 1)[:, :LABELS]
    share = soft.share[..., None]
    mixed = share * y + (1 - share) * y[soft.partner.long()]
    assert (dense(soft) * mixed).sum() / mixed.sum() > 3 * dense(soft).mean()
    assert soft.weight.min() >= 0
    assert soft.weight.max() <= 1
    assert all(torch.equal(partner.sort().values, torch.arange(400).int()) for partner in soft.partner)


def test_without_mixup_every_video_stays_itself() -> None:
    assert soft_labels(videos(20), LABELS, 0.0).share.min() == 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_videos_have_soft_labels_too(count: int) -> None:
    soft = soft_labels(videos(count), LABELS, MIXUP)
    assert soft.weight.isfinite().all()


def test_parts_cover_all_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PART", 40)
    assert sorted(torch.cat(kernel._parts(100)).tolist()) == list(range(100))
    assert max(map(len, kernel._parts(100))) <= 40
    assert dense(soft_labels(videos(100), LABELS, MIXUP)).sum(2).min() > 0


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


def test_kept_soft_labels_are_read_and_not_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = kept_soft_labels(videos(50), LABELS, MIXUP, tmp_path, never)
    monkeypatch.setattr(kernel, "soft_labels", lambda *_: pytest.fail("found again"))
    again = kept_soft_labels(videos(50), LABELS, MIXUP, tmp_path, never)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.index, again.index)


def test_other_videos_have_other_soft_labels(tmp_path: Path) -> None:
    changed = videos(50)
    changed.features[0][3] += 1
    for made in (videos(50), videos(50, seed=1), changed):
        kept_soft_labels(made, LABELS, MIXUP, tmp_path, never)
    kept_soft_labels(changed, LABELS, 2 * MIXUP, tmp_path, never)
    assert len(list(tmp_path.iterdir())) == 4


def test_damaged_soft_labels_are_named(tmp_path: Path) -> None:
    kept_soft_labels(videos(50), LABELS, MIXUP, tmp_path, never)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match=path.name):
        kept_soft_labels(videos(50), LABELS, MIXUP, tmp_path, never)
