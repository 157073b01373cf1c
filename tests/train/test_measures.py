"""What the training measures on its videos before it begins: Fisher ratios and label shares."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from train.data import FISHER_FLOOR, FISHER_VIDEOS, Videos, fisher_ratios, log_odds
from train.layers import Scaling, set_he, set_prior
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
