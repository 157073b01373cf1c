"""Soft labels: at which points they are taken, and that they are the teacher's answers there."""

from __future__ import annotations

import math

import pytest
import torch

from tests.train import fake_cuda
from tests.train.shards import LABELS, videos
from train.data import Videos
from train.distillation import soft_labels
from train.distillation.cache import cached_soft_labels
from train.distillation.kernel import CPU, NEIGHBOURS, Speed, Teacher, weighted
from train.distillation.soft_labels import PASSES, REACHES, SoftLabels, most_videos, parts_of, teacher_device
from train.measures import fisher_ratios

GPU = torch.device("cuda", 1)


def compute(made: Videos) -> SoftLabels:
    return cached_soft_labels(made, LABELS, None, lambda share, what: None)


@pytest.fixture(autouse=True)
def _in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_labels, "bf16_is_fast", lambda device: False)


def dense(soft: SoftLabels) -> torch.Tensor:
    """(P, N, L)"""
    return torch.zeros(*soft.share.shape, LABELS).scatter_(2, soft.index.long(), soft.weight.float())


def test_they_know_the_labels_of_the_video_that_they_are_near() -> None:
    made = videos(400)
    soft = compute(made)
    y = torch.zeros(400, LABELS + 1).scatter_(1, torch.from_numpy(made.labels).long() % (LABELS + 1), 1)[:, :LABELS]
    near = soft.share < REACHES[0] / 4
    assert (dense(soft) * y)[near].sum() / y.expand(PASSES, -1, -1)[near].sum() > 3 * dense(soft).mean()
    assert 0 <= soft.weight.min() <= soft.weight.max() <= 1
    assert soft.share.min() >= 0
    assert soft.share[::2].max() <= REACHES[0] < soft.share[1::2].max() <= REACHES[1]


def test_soft_labels_are_the_answers_at_their_points() -> None:
    made = videos(60)
    soft = compute(made)
    ratios = fisher_ratios(made)
    features = [torch.from_numpy(values) for values in made.features]
    y = torch.zeros(60, LABELS + 1).scatter_(1, torch.from_numpy(made.labels).long() % (LABELS + 1), 1)[:, :LABELS]
    order = parts_of(60, LABELS)[0].own
    teacher = Teacher(weighted([values[order] for values in features], ratios), y[order])
    first, second = soft.others[3].long().unbind(1)
    points = [values + soft.share[3, :, None] * (values[first] - values[second]) for values in features]
    expected = teacher.answer(weighted(points, ratios))
    torch.testing.assert_close(soft.weight[3].float(), expected.gather(1, soft.index[3].long()), rtol=0, atol=2e-3)


def test_every_second_pass_takes_the_difference_of_neighbours() -> None:
    made = videos(80)
    soft, ratios = compute(made), fisher_ratios(made)
    features, order = [torch.from_numpy(values) for values in made.features], parts_of(80, LABELS)[0].own
    y = torch.zeros(80, LABELS + 1).scatter_(1, torch.from_numpy(made.labels).long() % (LABELS + 1), 1)[:, :LABELS]
    teacher = Teacher(weighted([values[order] for values in features], ratios), y[order])
    seen = weighted([values[order] for values in features], ratios) @ teacher._metric_FF
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
    assert compute(videos(count)).weight.isfinite().all()


def test_equal_videos_have_soft_labels_too() -> None:
    made = videos(8)
    for values in made.features:
        values[:] = values[0]
    assert compute(made).weight.isfinite().all()


def test_parts_cover_all_videos_and_their_teachers_learn_from_as_many_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(soft_labels, "MOST_VIDEOS", 40)
    parts = parts_of(100, LABELS)
    assert [(part.number, part.count) for part in parts] == [(0, 3), (1, 3), (2, 3)]
    assert sorted(torch.cat([part.own for part in parts]).tolist()) == list(range(100))
    for part in parts:
        assert torch.equal(part.taught[: len(part.own)], part.own)
        assert len(part.taught.unique()) == 40
    assert all(torch.equal(one.taught, other.taught) for one, other in zip(parts, parts_of(100, LABELS), strict=True))
    assert dense(compute(videos(100))).sum(2).min() > 0


def test_memory_limits_how_many_a_teacher_learns_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_labels, "available_memory", lambda: 12e9)
    assert 34_550 < most_videos(12e9, 3862) < 45_000
    assert len(parts_of(45_000, 3862)) == 2
    monkeypatch.setattr(soft_labels, "available_memory", lambda: math.inf)
    assert len(parts_of(45_000, 3862)) == 1
    assert len(parts_of(45_001, 3862)) == 2
    assert len(parts_of(300_000, 3862)) == 7


def test_a_gpu_computes_them_where_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    made, cuda = videos(60), fake_cuda.install(monkeypatch)
    used: list[torch.device] = []

    def speed(bf16: bool, device: torch.device) -> Speed:
        used.append(device)
        return Speed(device=device)

    monkeypatch.setattr(Speed, "measure", speed)
    expected = compute(made)
    assert cuda.copies == []
    for free in (1_000, 10**9):
        cuda.free = free
        soft = cached_soft_labels(made, LABELS, None, lambda share, what: None, device=GPU)
        assert all(
            torch.equal(one, other) for one, other in zip(vars(soft).values(), vars(expected).values(), strict=True)
        )
    assert used == [CPU, CPU, GPU]
    assert {copy.device for copy in cuda.copies} == {GPU}
    assert teacher_device(CPU, 60, LABELS) == CPU
