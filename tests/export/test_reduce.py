"""Every reduction against the graph it reduces, in float64, and the traced graph against PyTorch."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from export import reduce as rules
from export.editor import Editor
from export.evaluate import evaluate
from export.graph import Graph, Operator
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
    assert list(rules.reduce(reduced).ops.values()) == list(reduced.ops.values()), (
        "a rule applies where it was not tried again"
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_no_rule_is_left_to_apply(name: str) -> None:
    config = CONFIGS[name]
    reduced = rules.reduce(trace(small_model(config), config.inputs))
    again = rules.apply(reduced, rules.RULES)
    assert [again.ops[n] is op for n, op in reduced.ops.items()] == [True] * len(again.ops)


def tries(blocks: int, form: Literal["average", "run"]) -> int:
    """How often `reduce` tries a rule on a DMRNet of so many joint blocks."""
    count = 0

    def counted(rule: rules.Rule) -> rules.Rule:
        def apply(graph: Editor, name: str) -> bool:
            nonlocal count
            count += 1
            return rule(graph, name)

        return apply

    config = replace(CONFIGS["dmrnet"], joint_blocks=blocks, form=form)
    graph = trace(small_model(config), config.inputs)
    folded = rules.apply(graph, [counted(rule) for rule in rules.FOLDS])
    rules.apply(folded, [counted(rule) for rule in rules.RULES])
    return count


@pytest.mark.parametrize("form", ["average", "run"])
def test_the_work_grows_with_the_number_of_blocks(form: Literal["average", "run"]) -> None:
    few, more, most = (tries(blocks, form) for blocks in (10, 20, 40))
    assert most - more == pytest.approx(2 * (more - few), rel=0.02)


def test_a_deep_network_keeps_no_multiplication_before_a_concatenation() -> None:
    config = CONFIGS["dmrnet-deep"]
    graph = rules.reduce(trace(small_model(config), config.inputs))
    (concat,) = (op for op in graph.ops.values() if op.kind == "concat")
    assert {graph.ops[source].kind for source in concat.inputs} == {"leaky_relu"}


@pytest.mark.parametrize("rule", rules.RULES, ids=lambda rule: rule.__name__)
def test_each_rule_alone_changes_nothing(rule: rules.Rule) -> None:
    applied = 0
    for config in CONFIGS.values():
        graph, features = trace(small_model(config), config.inputs), features_of(config)
        for earlier in rules.RULES[: rules.RULES.index(rule)]:
            graph = rules.apply(graph, [earlier])
        after = rules.apply(graph, [rule])
        applied += dict(after.ops) != dict(graph.ops)
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
        "x": Operator("input", width=2),
        "first": Operator("tanh", ("x",), width=2),
        "norm": Operator("affine", ("first",), {"scale": 2 * ones, "shift": ones}, 2),
        "last": Operator("tanh", ("norm",), width=2),
    }
    graph = Graph(ops, "last")
    assert rules.reduce(graph).ops == ops


def test_a_dense_that_others_read_takes_no_batch_norm() -> None:
    values = {"weight": np.eye(2), "bias": np.zeros(2)}
    ops = {
        "x": Operator("input", width=2),
        "dense": Operator("dense", ("x",), values, 2),
        "norm": Operator("affine", ("dense",), {"scale": np.array([2.0, -3.0]), "shift": np.ones(2)}, 2),
        "act": Operator("tanh", ("norm",), width=2),
        "sum": Operator("add", ("act", "dense"), width=2),
    }
    graph, features = Graph(ops, "sum"), {"x": np.random.default_rng(0).normal(size=(5, 2))}
    reduced = rules.reduce(graph)
    assert np.abs(result(reduced, features) - result(graph, features)).max() < EXACT
    assert np.array_equal(reduced.ops["dense"].values["weight"], np.eye(2))


def test_unknown_modules_are_not_guessed_at() -> None:
    with pytest.raises(Untranslatable, match="Softmax"):
        trace(torch.nn.Softmax(dim=1), [("x", 3)])
