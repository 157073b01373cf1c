"""Fresh BatchNorm statistics, and the variants' settings."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.ablation import THEIRS, changed, variants, with_fresh_statistics


def test_fresh_statistics_are_those_of_the_videos_and_the_model_keeps_its_own() -> None:
    model = nn.BatchNorm1d(3, momentum=0.01).eval()
    x = 5 + 2 * torch.randn(100, 3)
    fresh = with_fresh_statistics(model, [x])
    torch.testing.assert_close(fresh.get_buffer("running_mean"), x.mean(0))
    torch.testing.assert_close(fresh.get_buffer("running_var"), x.var(0))
    assert not model.training
    torch.testing.assert_close(model.get_buffer("running_mean"), torch.zeros(3))


def test_a_change_goes_to_the_configuration_that_has_it() -> None:
    model, config = changed(THEIRS, {"bn_momentum": 0.1, "bias": "prior"})
    assert (model.bn_momentum, config.bias) == (0.1, "prior")
    assert (THEIRS[0].bn_momentum, THEIRS[1].bias) == (0.01, "zero")


def test_variants_have_names_of_their_own_and_differ_from_their_side() -> None:
    every = variants(["*"])
    assert len({variant.name for variant in every}) == len(every)
    assert len({variant.recipe for variant in every}) == len(every)
    assert [variant.change for variant in variants(["ours: *bias"])] == ["zero bias"]


def test_a_smaller_batch_takes_the_place_of_the_reports_alone() -> None:
    sizes = {variant.name: variant.recipe[1].batch for variant in variants(["report:*"], epochs=2, batch=100)}
    assert sizes.pop("report: batch 1,024") == 1024
    assert set(sizes.values()) == {100}
