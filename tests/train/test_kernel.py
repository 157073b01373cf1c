"""Soft labels against plain regressions and gradients in double precision, and what they are kept in."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from scorer.errors import ModelError
from tests.train.shards import LABELS, videos
from train import kernel
from train.data import fisher_ratios
from train.kernel import (
    COMPANY_RIDGE,
    GAMMA,
    NEIGHBOURS,
    PASSES,
    REACHES,
    RELEVANCE_POWER,
    RIDGE,
    SoftLabels,
    Teacher,
    _parts,
    calibrated,
    calibration,
    company,
    inverse_diagonal,
    kept_soft_labels,
    relevance,
    soft_labels,
    weighted,
    with_company,
)


def never(step: str) -> None:
    pass


def test_answers_are_those_of_a_regression_in_the_distances_that_relevance_gives() -> None:
    random = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 5, generator=random), torch.rand(12, 3, generator=random).round()
    points = torch.randn(7, 5, generator=random)
    teacher = Teacher(x, y)
    seen = teacher._seen_FF.double()
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
    x_seen = (x @ Teacher(x, y)._seen_FF).double()
    for row in range(12):
        rest = torch.arange(12) != row
        inner = torch.exp(-GAMMA * torch.cdist(x_seen[rest], x_seen[rest]).square())
        outer = torch.exp(-GAMMA * torch.cdist(x_seen[row, None], x_seen[rest]).square())
        ridge = RIDGE * torch.eye(11, dtype=torch.double)
        expected = outer @ torch.linalg.solve(inner + ridge, y[rest].double())
        torch.testing.assert_close(seen[0][row, None].double(), expected, rtol=1e-3, atol=1e-3)


def test_the_diagonal_of_the_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(50, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    matrix = x @ x.T + torch.eye(50)
    expected = torch.linalg.inv(matrix.double()).diagonal()
    for columns in (7, 50, 1000):
        monkeypatch.setattr(kernel, "_COLUMNS", columns)
        found = inverse_diagonal(torch.linalg.cholesky(matrix))
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_relevance_is_the_mean_outer_product_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd, in all directions of the labels' space."""
    random = torch.Generator().manual_seed(0)
    x, solution = torch.randn(9, 4, generator=random), torch.randn(9, 3, generator=random)
    monkeypatch.setattr(kernel, "_DIRECTIONS", 200_000)
    found = relevance(x, solution)

    def answer(point: torch.Tensor) -> torch.Tensor:
        return torch.exp(-GAMMA * (x - point).square().sum(dim=1)) @ solution

    outer = torch.zeros(4, 4)
    for point in x:
        jacobian = torch.autograd.functional.jacobian(answer, point)
        outer += jacobian.T @ jacobian
    values, vectors = torch.linalg.eigh(outer)
    expected = (vectors * (values / values[-1]) ** RELEVANCE_POWER) @ vectors.T
    torch.testing.assert_close(found / found.norm(), expected / expected.norm(), rtol=0, atol=0.01)
    spread = [(points - points.mean(dim=0)).square().sum() for points in (x, x @ found)]
    torch.testing.assert_close(spread[0], spread[1])


def test_relevance_finds_the_feature_that_matters() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(300, 6, generator=random)
    y = torch.stack([x[:, 2] > 0, x[:, 2] < -1], dim=1).float()
    weights = Teacher(x, y)._seen_FF.diagonal()
    assert weights[2] > 1.5 * weights[torch.arange(6) != 2].max()


def test_low_precision_changes_answers_little() -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(200, 20, generator=random))
    y = (x @ torch.randn(20, 9, generator=random) > 0.4).float()
    exact, low = (Teacher(x, y, bf16=bf16).regress((x + x.roll(1, 0)) / 2) for bf16 in (False, True))
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


def test_they_know_the_labels_of_the_video_that_they_are_near() -> None:
    made = videos(400)
    soft = soft_labels(made, LABELS)
    y = torch.zeros(400, LABELS + 1).scatter_(1, torch.from_numpy(made.labels).long() % (LABELS + 1), 1)[:, :LABELS]
    near = soft.share < REACHES[0] / 4
    assert (dense(soft) * y)[near].sum() / y.expand(PASSES, -1, -1)[near].sum() > 3 * dense(soft).mean()
    assert 0 <= soft.weight.min() <= soft.weight.max() <= 1
    assert soft.share.min() >= 0
    assert soft.share[::2].max() <= REACHES[0] < soft.share[1::2].max() <= REACHES[1]


def test_soft_labels_are_the_answers_at_their_points() -> None:
    made = videos(60)
    soft = soft_labels(made, LABELS, bf16=False)
    ratios = fisher_ratios(made)
    features = [torch.from_numpy(values) for values in made.features]
    y = torch.zeros(60, LABELS + 1).scatter_(1, torch.from_numpy(made.labels).long() % (LABELS + 1), 1)[:, :LABELS]
    order = _parts(60)[0]
    teacher = Teacher(weighted([values[order] for values in features], ratios), y[order])
    first, second = soft.others[3].long().unbind(1)
    points = [values + soft.share[3, :, None] * (values[first] - values[second]) for values in features]
    expected = teacher.answer(weighted(points, ratios))
    torch.testing.assert_close(soft.weight[3].float(), expected.gather(1, soft.index[3].long()), rtol=0, atol=2e-3)


def test_every_second_pass_takes_the_difference_of_neighbours() -> None:
    made = videos(80)
    soft, ratios = soft_labels(made, LABELS, bf16=False), fisher_ratios(made)
    features, order = [torch.from_numpy(values) for values in made.features], _parts(80)[0]
    y = torch.zeros(80, LABELS + 1).scatter_(1, torch.from_numpy(made.labels).long() % (LABELS + 1), 1)[:, :LABELS]
    teacher = Teacher(weighted([values[order] for values in features], ratios), y[order])
    seen = weighted([values[order] for values in features], ratios) @ teacher._seen_FF
    distances = torch.cdist(seen, seen).fill_diagonal_(torch.inf)
    near = teacher.neighbours()
    assert near.shape == (80, NEIGHBOURS)
    torch.testing.assert_close(distances.gather(1, near), distances.topk(NEIGHBOURS, largest=False).values)
    allowed = torch.zeros(80, 80, dtype=torch.bool)
    allowed[order[:, None], order[near]] = True
    held = allowed[soft.others[:, :, 0].long(), soft.others[:, :, 1].long()]
    assert held[1::2].all()
    assert (~held[::2]).any(dim=1).all()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_videos_have_soft_labels_too(count: int) -> None:
    assert soft_labels(videos(count), LABELS).weight.isfinite().all()


def test_equal_videos_have_soft_labels_too() -> None:
    made = videos(8)
    for values in made.features:
        values[:] = values[0]
    assert soft_labels(made, LABELS).weight.isfinite().all()


def test_parts_that_memory_has_room_for_cover_all_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "available_memory", lambda: 10 * 40**2)
    assert sorted(torch.cat(_parts(100)).tolist()) == list(range(100))
    assert max(map(len, _parts(100))) <= 40
    assert dense(soft_labels(videos(100), LABELS)).sum(2).min() > 0


def test_memory_of_unknown_size_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "available_memory", lambda: math.inf)
    assert len(_parts(100)) == 1


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
