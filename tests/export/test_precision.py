"""int8 and fp16: what they promise about arithmetic, ranges and neighbours, and their gates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx.reference import ReferenceEvaluator

from export.evaluate import evaluate
from export.graph import Graph, Operator
from export.onnx_writer import to_onnx
from export.precision import _scale_and_zero, _weight_scales, quantise, smooth_inputs, to_fp16
from export.reduce import reduce
from export.tracing import trace
from export.videos import Features, random_videos
from scorer.errors import ModelError
from scorer.model.model import Model
from tests.export.small import CONFIGS, small_model


def metadata(graph: Graph) -> dict[str, str]:
    return {"yt8m.format": "1", "yt8m.labels": str(graph.labels)}


def reduced(name: str) -> tuple[Graph, Features]:
    config = CONFIGS[name]
    return reduce(trace(small_model(config), config.inputs)), random_videos(dict(config.inputs), 300).features


def probabilities(graph: Graph, features: Features) -> np.ndarray:
    return 1 / (1 + np.exp(-evaluate(graph, features)[graph.output]))


def answers(path: Path, features: Features) -> np.ndarray:
    """All probabilities (n, labels) of the file at `path`, in the order of the labels."""
    model = Model.open(str(path), device="cpu")
    scores, labels = model.run(features, k=model.facts.labels)
    found = np.zeros_like(scores)
    np.put_along_axis(found, labels, scores, axis=1)
    return found


@pytest.mark.parametrize("name", CONFIGS)
def test_int8_runs_as_the_integers_say(name: str, tmp_path: Path) -> None:
    graph, features = reduced(name)
    quantised = quantise(graph, features)
    onnx.save(to_onnx(quantised, "int8", metadata(graph)), tmp_path / "model.onnx")
    assert np.abs(answers(tmp_path / "model.onnx", features) - probabilities(quantised, features)).max() < 1e-5
    assert np.abs(probabilities(quantised, features) - probabilities(graph, features)).max() < 0.1
    assert "dense" not in {op.kind for op in quantised.ops.values()}


@pytest.mark.parametrize("name", ["bilstm", "dmrnet-run"])
def test_int8_gives_a_video_the_same_bits_in_any_batch(name: str, tmp_path: Path) -> None:
    graph, features = reduced(name)
    onnx.save(to_onnx(quantise(graph, features), "int8", metadata(graph)), tmp_path / "model.onnx")
    together = answers(tmp_path / "model.onnx", features)
    for row in range(20):
        alone = answers(tmp_path / "model.onnx", {n: v[row : row + 1] for n, v in features.items()})
        assert np.array_equal(alone[0], together[row])


@given(arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 3)), elements=st.floats(-100, 100)))
def test_no_two_products_overflow_sixteen_bits(weight: np.ndarray) -> None:
    """255 * w[2i] + 255 * w[2i + 1], which AVX2's vpmaddubsw adds with saturation, in any order of activations."""
    integers = np.round(weight / _weight_scales(weight))
    padded = np.concatenate([integers, np.zeros((len(integers) % 2, integers.shape[1]))]).reshape(
        -1, 2, weight.shape[1]
    )
    assert 255 * np.maximum(padded, 0).sum(axis=1).max() <= 32767
    assert 255 * np.minimum(padded, 0).sum(axis=1).min() >= -32768
    assert np.abs(integers).max() <= 128


@given(st.floats(-1e4, 0), st.floats(0, 1e4))
def test_activation_ranges_are_covered_and_zero_is_exact(low: float, high: float) -> None:
    values = _scale_and_zero(low, high)
    scale, zero = float(values["scale"]), float(values["zero"])
    assert zero == int(zero)
    assert 0 <= zero <= 255
    assert (0 - zero) * scale <= low + 0.51 * scale
    assert (255 - zero) * scale >= high - 0.51 * scale


def test_calibrating_twice_gives_the_same_file() -> None:
    graph, features = reduced("lstm")
    first, second = (to_onnx(quantise(graph, features), "int8", metadata(graph)).SerializeToString() for _ in range(2))
    assert first == second


def skewed() -> tuple[Graph, Features]:
    """A Dense over features whose sizes differ a thousandfold, each mattering as much as it is large."""
    random = np.random.default_rng(5)
    sizes = np.logspace(-3, 0, 64)
    values = {"weight": random.normal(size=(64, 8)), "bias": np.zeros(8)}
    ops = {"x": Operator("input", width=64), "y": Operator("dense", ("x",), values, 8)}
    return Graph(ops, "y"), {"x": (random.normal(size=(400, 64)) * sizes).astype(np.float32)}


def test_smoothing_changes_nothing_but_the_rounding() -> None:
    graph, features = skewed()
    smooth = smooth_inputs(graph, features)
    exact = evaluate(graph, features)["y"]
    assert np.abs(evaluate(smooth, features)["y"] - exact).max() < 1e-12
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("export.precision._EXPONENTS", (0.0,))
        rough = evaluate(quantise(graph, features), features)["y"]
    fine = evaluate(quantise(graph, features), features)["y"]
    assert np.square(fine - exact).mean() < 0.5 * np.square(rough - exact).mean()


def test_a_feature_that_calibration_never_saw_is_not_blown_up() -> None:
    graph, features = skewed()
    features["x"][:, 7] = 0
    smooth = smooth_inputs(graph, features)
    (scales,) = (op.values["scale"] for op in smooth.ops.values() if op.kind == "affine")
    assert scales.max() / scales.min() <= 1001
    assert smooth_inputs(graph, {"x": np.zeros((9, 64), np.float32)}) is graph


def test_features_of_one_size_are_left_alone() -> None:
    graph, features = reduced("bilstm")
    assert smooth_inputs(graph, features) is graph


def test_int8_wants_a_dense() -> None:
    graph = Graph({"x": Operator("input", width=3), "y": Operator("tanh", ("x",), width=3)}, "y")
    with pytest.raises(ModelError, match="Dense"):
        quantise(graph, {"x": np.zeros((2, 3), np.float32)})


@pytest.mark.parametrize("name", ["bilstm", "lstm-l2", "dmrnet"])
def test_fp16_is_near(name: str, tmp_path: Path) -> None:
    graph, features = reduced(name)
    onnx.save(to_onnx(to_fp16(graph), "fp16", metadata(graph)), tmp_path / "model.onnx")
    assert np.abs(answers(tmp_path / "model.onnx", features) - probabilities(graph, features)).max() < 5e-3


def test_fp16_refuses_weights_that_it_cannot_hold() -> None:
    graph, _ = reduced("dmrnet")
    dense = graph.ops["classify"]
    huge = Operator("dense", dense.inputs, {**dense.values, "bias": dense.values["bias"] + 1e6}, dense.width)
    with pytest.raises(ModelError, match="fp16"):
        to_fp16(graph.with_ops({"classify": huge}))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["bilstm", "lstm-l2", "dmrnet", "bilstm-4-steps"])
def test_the_reference_evaluator_agrees(name: str, precision: str) -> None:
    graph, features = reduced(name)
    graph = quantise(graph, features) if precision == "int8" else graph
    model = to_onnx(graph, precision, metadata(graph))
    onnx.checker.check_model(model, full_check=True)
    if precision == "int8":  # the evaluator knows DequantizeLinear from opset 19 on, which means the same
        model.opset_import[0].version = 19
    feed = {n: v[:7] for n, v in features.items()}
    scores, labels = ReferenceEvaluator(model).run(None, {**feed, "k": np.array([10])})
    expected = probabilities(graph, feed)
    assert np.abs(np.take_along_axis(expected, np.asarray(labels), axis=1) - scores).max() < 1e-5
    assert json.loads(json.dumps([node.domain for node in model.graph.node if node.domain])) == []
