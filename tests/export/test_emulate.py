"""fp16 as a GPU computes it: what it rounds, and that an overflow there keeps a file from being written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.cli import main
from export.emulate import EmulatedFp16
from export.evaluate import evaluate
from export.graph import Graph, Operator
from export.precision import to_fp16
from export.reduce import reduce
from export.tracing import trace
from export.videos import random_videos
from scorer.errors import GateError
from tests.export.small import CONFIGS, save_run, small_checkpoint, small_model
from train.checkpoint import save
from train.config import TrainConfig


def dense(weight: float, bias: float = 0.0, width: int = 2) -> Graph:
    values = {"weight": np.full((width, 3), weight), "bias": np.full(3, bias)}
    return to_fp16(Graph({"x": Operator("input", width=width), "y": Operator("dense", ("x",), values, 3)}, "y"))


def logits(graph: Graph, x: list[float]) -> float:
    found = EmulatedFp16(graph).probabilities({"x": np.array([x], np.float32)})
    return float(np.log(found[0, 0].astype(np.float64) / (1 - found[0, 0])))


def test_products_are_summed_in_float32_and_rounded_at_the_end() -> None:
    many = dense(1.0, width=4096)  # in half precision, 1 + 1/4096 is 1
    assert logits(many, [1.0] + [1 / 4096] * 4095) == pytest.approx(2.0, abs=1e-3)
    assert logits(dense(1.0), [1.0, 1 / 4096]) == pytest.approx(1.0, abs=1e-6)


def test_weights_and_inputs_are_rounded() -> None:
    third = float(np.float16(1 / 3))
    assert logits(dense(1 / 3), [1 / 3, 0.0]) == pytest.approx(float(np.float16(third * third)), abs=1e-6)


@pytest.mark.parametrize("name", ["bilstm", "lstm-l2", "dmrnet", "dmrnet-fisher", "bilstm-4-steps"])
def test_it_is_near_the_graph_it_emulates(name: str) -> None:
    graph = reduce(trace(small_model(CONFIGS[name]), CONFIGS[name].inputs))
    features = random_videos(graph.inputs, 50).features
    exact = 1 / (1 + np.exp(-evaluate(graph, features)[graph.output]))
    found = EmulatedFp16(to_fp16(graph))
    assert 0 < np.abs(found.probabilities(features) - exact).max() < 5e-3
    scores, labels = found.run(features, 7)
    assert scores.shape == labels.shape == (50, 7)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_an_overflow_is_named() -> None:
    with pytest.raises(GateError, match=r"in fp16 3 of 3 values of y overflow, 70,000 for one: it holds 65,504"):
        EmulatedFp16(dense(1.0, 10_000.0)).probabilities({"x": np.array([[30_000, 30_000]], np.float32)})


def test_a_model_that_overflows_in_half_precision_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU its fp16 file answers as the checkpoint does, since ONNX Runtime computes it in float32 there."""
    checkpoint = small_checkpoint("dmrnet")
    state = {name: tensor.clone() for name, tensor in checkpoint.state.items()}
    for branch in (0, 1):
        state[f"branches.{branch}.0.norm.weight"] *= 30_000
        state[f"branches.{branch}.0.norm.bias"] *= 30_000
    state["classify.weight"] /= 30_000
    state["last.norm.running_var"] *= 30_000.0**2
    runs = tmp_path / "runs"
    path = save_run(runs, "dmrnet")
    checkpoint.state = state
    save(path, checkpoint, TrainConfig())
    given = ["--runs", str(runs), "--output", str(tmp_path / "models"), "--no-speed", "--model", "dmrnet"]
    assert main([*given, "--precision", "fp16"]) == 11
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "in fp16" in message
    assert "overflow" in message
    assert not (tmp_path / "models/dmrnet.fp16.onnx").exists()
