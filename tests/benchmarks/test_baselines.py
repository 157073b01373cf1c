"""The starter code's mixture against its definition, written out."""

from __future__ import annotations

import pytest
import torch

from benchmarks.baselines import EXPERTS, LABELS, WIDTH, Inputs, Mixture
from tests.train.shards import videos


@pytest.mark.parametrize("size", [0.1, 30])
def test_mixture_is_the_gated_sum_of_its_experts(size: float) -> None:
    torch.manual_seed(0)
    model, x = Mixture(), size * torch.randn(3, WIDTH)
    gates = (x @ model.gates.weight.T).double().view(3, EXPERTS + 1, LABELS).softmax(1)
    votes = (x @ model.experts.weight.T + model.experts.bias).double().view(3, EXPERTS, LABELS).sigmoid()
    p = (gates[:, :-1] * votes).sum(1)
    torch.testing.assert_close(model(x).double().sigmoid(), p, atol=2e-6, rtol=1e-4)


def test_unit_inputs_have_length_1() -> None:
    found = Inputs("unit", videos(4))(torch.randn(4, 1024), torch.randn(4, 128))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
