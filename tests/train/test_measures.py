"""What the training measures on its videos before it begins: Fisher ratios and label shares."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from train import measures
from train.data import Videos
from train.layers import Scaling, set_he, set_prior
from train.measures import FISHER_FLOOR, FISHER_VIDEOS, fisher_ratios, log_odds, statistics
from train.registry import build, names, spec


def videos(seed: int = 0, count: int = 400) -> Videos:
    """Feature 0 shows the label, feature 1 a little of it, feature 2 is noise, feature 3 a constant."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, (count, 1)).astype(np.int32)
    x = generator.normal(size=(count, 4)).astype(np.float32)
    x[:, 0] = labels[:, 0] + 0.01 * x[:, 0]
    x[:, 1] += 0.5 * labels[:, 0]
    x[:, 3] = 2.5
    return Videos([x], labels, [b"%d" % row for row in range(count)])


def test_fisher_ratios_against_the_formula() -> None:
    data = videos()
    x, labels = data.features[0].astype(np.float64), data.labels[:, 0]
    variance = x[:, :3].var(axis=0)
    between = sum(
        (labels == label).sum() * (x[labels == label, :3].mean(axis=0) - x[:, :3].mean(axis=0)) ** 2
        for label in range(4)
    )
    expected = np.maximum(between / (len(x) * variance) - 4 / len(x), FISHER_FLOOR)
    (ratios,) = fisher_ratios(data)
    np.testing.assert_allclose(ratios[:3].numpy(), expected, rtol=1e-5)
    assert ratios[0] > 0.98
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[3] == pytest.approx(FISHER_FLOOR)


def several_labels(count: int, width: int = 40, mean: float = 0.0) -> Videos:
    """Videos with up to three of 30 labels, most of which are frequent, and features that depend on them a little."""
    random = np.random.default_rng(3)
    labels = np.sort(random.integers(-1, 30, (count, 3)).astype(np.int32) * (random.random((count, 3)) > 0.1), axis=1)
    x = random.normal(size=(count, width)) + 0.3 * random.normal(size=(31, width))[labels].sum(axis=1) + mean
    return Videos([x.astype(np.float32), x[:, :1].astype(np.float32)], labels, [b""] * count)


def plainly(videos: Videos, values: np.ndarray) -> np.ndarray:
    """The criterion with all videos in float64 at once, label by label."""
    x = values.astype(np.float64)
    members = {label: (videos.labels == label).nonzero()[0] for label in range(30)}
    members = {label: rows for label, rows in members.items() if len(rows) >= FISHER_VIDEOS}
    total = sum(map(len, members.values()))
    between = sum(len(rows) * (x[rows].mean(axis=0) - x.mean(axis=0)) ** 2 for rows in members.values())
    return between / (total * (x.var(axis=0) + 1e-12)) - len(members) / total


@pytest.mark.parametrize("mean", [0.0, 50.0])
@pytest.mark.parametrize("threads", [1, 3])
def test_block_by_block_is_all_at_once(mean: float, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    data = several_labels(2000, mean=mean)
    for values in data.features:
        found = measures._criterion(values, measures._Groups.of_labels(data.labels))
        np.testing.assert_allclose(found, plainly(data, values), rtol=1e-12)
    (mean_0, std_0), _ = statistics(data)
    x = data.features[0].astype(np.float64)
    assert torch.equal(mean_0, torch.from_numpy(x.mean(axis=0)).float())
    torch.testing.assert_close(std_0, torch.from_numpy(x.std(axis=0)).float(), rtol=2e-7, atol=0)


def test_measuring_takes_little_memory() -> None:
    data = several_labels(60_000)
    tracemalloc.start()
    fisher_ratios(data)
    statistics(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < data.features[0].nbytes / 2


def test_ratios_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data = several_labels(100)
    found = fisher_ratios(data)
    monkeypatch.setattr(measures, "_moments", None)
    assert fisher_ratios(data) is found
    assert data.rows(np.arange(50)).ratios is None


def test_statistics() -> None:
    made = several_labels(50)
    made.features[1][:, 0] = 3
    (mean, std), (_, constant) = statistics(made)
    torch.testing.assert_close(mean, torch.from_numpy(made.features[0]).mean(0))
    torch.testing.assert_close(std, torch.from_numpy(made.features[0]).std(0, correction=0))
    assert constant[0] == 1


def test_rare_labels_do_not_count() -> None:
    data = videos(count=FISHER_VIDEOS - 1)
    (ratios,) = fisher_ratios(data)
    assert (ratios == ratios[0]).all()


def test_fisher_scaling_weighs_then_normalises() -> None:
    scaling = Scaling("fisher", 3)
    weight = torch.tensor([2.0, 1.0, 0.0])
    scaling.set_weight(weight)
    x = torch.tensor([[1.0, 2.0, 5.0], [0.3, -0.1, 9.0]])
    weighted = x * weight
    torch.testing.assert_close(scaling(x), weighted / weighted.square().mean(dim=1, keepdim=True).sqrt())


@pytest.mark.parametrize("name", names())
def test_he_weights_have_a_variance_of_2_over_their_inputs(name: str) -> None:
    model = build(replace(spec(name).published, embedding=4, hidden=2, head=600, width=600))
    set_he(model)
    assert model.get_parameter("classify.weight").var().item() == pytest.approx(2 / 600, rel=0.01)


def test_prior_is_the_log_odds_of_the_labels() -> None:
    data = Videos([np.zeros((4, 2), np.float32)], np.array([[0, 1], [0, -1], [1, -1], [0, -1]], np.int32), [b""] * 4)
    odds = log_odds(data, 3)
    torch.testing.assert_close(odds[:2], torch.tensor([3.0, 1.0]).log())
    assert odds[2] == pytest.approx(np.log(1e-5), rel=1e-3)
    for name in names():
        model = build(
            replace(spec(name).published, inputs=(("x", 2),), labels=3, embedding=4, hidden=2, head=4, width=4)
        )
        set_prior(model, odds)
        assert torch.equal(model.get_parameter("classify.bias").detach(), odds)
