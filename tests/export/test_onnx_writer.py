"""Names of inputs that the graph needs for values of its own, and how nodes are counted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from export.build import convert, trace_checkpoint
from export.onnx_writer import node_count, to_onnx
from export.plain import plain_export
from export.reduce import reduce
from export.tracing import trace
from export.videos import random_videos
from scorer.errors import ModelError
from tests.export.small import CONFIGS, small_model
from train.checkpoint import Checkpoint


@pytest.mark.parametrize(
    "name", ["k", "probabilities", "classify", "classify.weight", "branches.0.recurrent.i.dense.bias"]
)
def test_a_feature_with_the_name_of_another_value_is_refused(name: str) -> None:
    config = replace(CONFIGS["lstm"], inputs=((name, 24), ("mean_audio", 6)))
    checkpoint = Checkpoint(config, dict(small_model(config).state_dict()), {})
    with pytest.raises(ModelError, match=f"a feature called '{name}' cannot be an input.*rename it"):
        convert(trace_checkpoint(checkpoint), "fp32", random_videos(dict(config.inputs), 1))


def test_an_input_may_have_a_name_that_reducing_would_give() -> None:
    config = replace(CONFIGS["lstm"], inputs=(("branches.0.recurrent.i", 24), ("mean_audio", 6)))
    checkpoint = Checkpoint(config, dict(small_model(config).state_dict()), {})
    model = convert(trace_checkpoint(checkpoint), "fp32", random_videos(dict(config.inputs), 1))
    assert [value.name for value in model.graph.input] == ["branches.0.recurrent.i", "mean_audio", "k"]


def test_the_plain_export_refuses_it_too() -> None:
    config = replace(CONFIGS["lstm"], inputs=(("logits", 24), ("mean_audio", 6)))
    with pytest.raises(ModelError, match="'logits' cannot be an input"):
        plain_export(small_model(config), config.inputs, {})


@pytest.mark.parametrize("name", ["lstm", "bilstm", "bilstm-4-steps", "dmrnet"])
def test_nodes_are_counted_as_they_are_written(name: str) -> None:
    before = trace(small_model(CONFIGS[name]), CONFIGS[name].inputs)
    after = reduce(before)
    for graph in (before, after):
        assert node_count(graph) == len(to_onnx(graph, "fp32", {}).graph.node)
    assert node_count(after) < node_count(before)
