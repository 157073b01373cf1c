"""Every reduction against the graph it reduces, in float64, and the traced graph against PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export import reduce as rules
from export.ops import Graph, Op, evaluate
from export.tracing import Untranslatable, trace
from tests.export.small import CONFIGS, small_model
from train.config import ModelConfig

EXACT = 1e-12


def features_of(config: ModelConfig) -> dict[str, NDArray]:
    random = np.random.default_rng(1)
    return {name: random.normal(0, 0.6, (9, width)) for name, width in config.inputs}


def result(graph: Graph, features: dict[str, NDArray]) -> NDArray:
    return evaluate(graph, features)[graph.output]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_trace_is_what_pytorch_computes(name: str) -> None:
    config = CONFIGS[name]
    model = small_model(config).double()
    features = features_of(config)
    with torch.no_grad():
        expected = model(*(torch.from_numpy(features[n]) for n, _ in config.inputs)).numpy()
    assert np.abs(result(trace(model, config.inputs), features) - expected).max() < EXACT


@pytest.mark.parametrize("name", CONFIGS)
def test_reducing_changes_nothing(name: str) -> None:
    config = CONFIGS[name]
    whole, features = trace(small_model(config), config.inputs), features_of(config)
    reduced = rules.reduce(whole)
    assert np.abs(result(reduced, features) - result(whole, features)).max() < EXACT
    assert reduced.parameters() < whole.parameters()
    assert not {op.kind for op in reduced.ops.values()} & {"dropout"}


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_each_rule_alone_changes_nothing(rule: Callable[[Graph], Graph]) -> None:
    applied = 0
    for config in CONFIGS.values():
        graph, features = trace(small_model(config), config.inputs), features_of(config)
        for earlier in rules.RULES[: rules.RULES.index(rule)]:
            graph = earlier(graph)
        after = rule(graph)
        applied += after is not graph
        assert np.abs(result(after, features) - result(graph, features)).max() < EXACT
    assert applied, "no model of these tests uses the rule"


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("bilstm", {"input", "dense", "tanh", "sigmoid", "multiply", "concat", "leaky_relu", "affine"}),
        ("dmrnet", {"input", "dense", "leaky_relu", "add", "concat"}),
        ("dmrnet-run", {"input", "normalise", "dense", "leaky_relu", "add", "concat"}),
        ("bilstm-4-steps", {"input", "dense", "tanh", "affine", "lstm", "concat", "leaky_relu"}),
    ],
)
def test_what_is_left(name: str, kinds: set[str]) -> None:
    graph = rules.reduce(trace(small_model(CONFIGS[name]), CONFIGS[name].inputs))
    assert {op.kind for op in graph.ops.values()} == kinds


def test_one_step_keeps_three_of_four_gates_and_no_recurrent_weights() -> None:
    config = CONFIGS["bilstm"]
    graph = rules.reduce(trace(small_model(config), config.inputs))
    gates = [op for name, op in graph.ops.items() if ".recurrent." in name and op.kind == "dense"]
    assert sum(op.values["weight"].size for op in gates) == 2 * 2 * 3 * config.hidden * config.embedding


def test_a_batch_norm_between_two_tanhs_stays() -> None:
    ones = np.ones(2)
    ops = {
        "x": Op("input", width=2),
        "first": Op("tanh", ("x",), width=2),
        "norm": Op("affine", ("first",), {"scale": 2 * ones, "shift": ones}, 2),
        "last": Op("tanh", ("norm",), width=2),
    }
    graph = Graph(ops, "last")
    assert rules.reduce(graph).ops == ops


def test_a_dense_that_others_read_takes_no_batch_norm() -> None:
    values = {"weight": np.eye(2), "bias": np.zeros(2)}
    ops = {
        "x": Op("input", width=2),
        "dense": Op("dense", ("x",), values, 2),
        "norm": Op("affine", ("dense",), {"scale": np.array([2.0, -3.0]), "shift": np.ones(2)}, 2),
        "act": Op("tanh", ("norm",), width=2),
        "sum": Op("add", ("act", "dense"), width=2),
    }
    graph, features = Graph(ops, "sum"), {"x": np.random.default_rng(0).normal(size=(5, 2))}
    reduced = rules.reduce(graph)
    assert np.abs(result(reduced, features) - result(graph, features)).max() < EXACT
    assert np.array_equal(reduced.ops["dense"].values["weight"], np.eye(2))


def test_unknown_modules_are_not_guessed_at() -> None:
    with pytest.raises(Untranslatable, match="Softmax"):
        trace(torch.nn.Softmax(dim=1), [("x", 3)])
