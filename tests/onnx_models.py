"""Tiny ONNX models that obey the scorer's contract (docs/formats.md), made without torch.

    from tests.onnx_models import save_model
    save_model(tmp_path / "model.onnx", inputs={"mean_rgb": 8, "mean_audio": 4}, labels=20)

The network is Concat -> Gemm -> Relu -> Gemm -> Sigmoid -> TopK with seeded random weights; `hidden=0` leaves the
middle layer out, and `embeddings` gives what the last Gemm reads too. `build_model` returns the ModelProto, for tests
that break one thing in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from scorer.model import runtime

INPUTS = {"mean_rgb": 1024, "mean_audio": 128}
LABELS = 3862


def save_model(
    path: str | Path,
    *,
    inputs: Mapping[str, int] = INPUTS,
    labels: int = LABELS,
    hidden: int = 0,
    half: bool = False,
    names: Sequence[str] | None = None,
    seed: int = 0,
    embeddings: bool = False,
) -> str:
    """Write `build_model(...)` to `path` and return the path as str."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    model = build_model(
        inputs=inputs, labels=labels, hidden=hidden, half=half, names=names, seed=seed, embeddings=embeddings
    )
    onnx.save(model, str(path))
    return str(path)


def build_model(
    *,
    inputs: Mapping[str, int] = INPUTS,
    labels: int = LABELS,
    hidden: int = 0,
    half: bool = False,
    names: Sequence[str] | None = None,
    seed: int = 0,
    embeddings: bool = False,
) -> onnx.ModelProto:
    """A model of the contract: float32[batch, width] (float16 if `half`) inputs, `k` = 10, `labels` outputs."""
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    weights = _weights(sum(inputs.values()), hidden, labels, seed)
    tensors = [numpy_helper.from_array(value.astype(np.float16 if half else np.float32), name)
               for name, value in weights.items()]  # fmt: skip
    k = numpy_helper.from_array(np.array([10], np.int64), "k")
    width = hidden or sum(inputs.values())
    third = [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", width])] if embeddings else []
    graph = helper.make_graph(
        _nodes(list(inputs), hidden, half, embeddings),
        "tiny",
        [helper.make_tensor_value_info(name, kind, ["batch", width]) for name, width in inputs.items()]
        + [helper.make_tensor_value_info("k", TensorProto.INT64, [1])],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "k"]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, ["batch", "k"]),
            *third,
        ],
        [*tensors, k],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata(labels, half=half, names=names))
    return model


def metadata(labels: int, *, half: bool = False, names: Sequence[str] | None = None) -> dict[str, str]:
    """The metadata of the contract for a model of `labels` labels."""
    entries = {
        "yt8m.format": "1",
        "yt8m.model": "tiny",
        "yt8m.config": json.dumps({"name": "tiny"}),
        "yt8m.labels": str(labels),
        "yt8m.metrics": json.dumps({"MAP@10": 0.5}),
        "yt8m.precision": "fp16" if half else "fp32",
        "yt8m.parity": json.dumps({}),
        "yt8m.weights_sha256": "0" * 64,
        "yt8m.operators": json.dumps([]),
    }
    if names is not None:
        entries["yt8m.names"] = json.dumps(list(names))
    return entries


def reference(
    features: Mapping[str, NDArray[np.float32]], *, labels: int, hidden: int = 0, seed: int = 0, k: int = 10
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What `build_model(labels=..., hidden=..., seed=...)` must answer, in float64: scores and labels, (n, k) each."""
    x = np.concatenate([np.asarray(value, np.float64) for value in features.values()], axis=1)
    weights = _weights(x.shape[1], hidden, labels, seed)
    if hidden:
        x = np.maximum(x @ weights["w1"] + weights["b1"], 0)
    scores = 1 / (1 + np.exp(-(x @ weights["w2"] + weights["b2"])))
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), order.astype(np.int64)


def _weights(width: int, hidden: int, labels: int, seed: int) -> dict[str, NDArray[np.float32]]:
    random = np.random.default_rng(seed)
    weights = {}
    if hidden:
        weights["w1"] = random.normal(0, width**-0.5, (width, hidden)).astype(np.float32)
        weights["b1"] = random.normal(0, 0.1, hidden).astype(np.float32)
    weights["w2"] = random.normal(0, 2 * (hidden or width) ** -0.5, (hidden or width, labels)).astype(np.float32)
    weights["b2"] = random.normal(-1, 1, labels).astype(np.float32)
    return weights


def _nodes(inputs: list[str], hidden: int, half: bool, embeddings: bool) -> list[onnx.NodeProto]:
    nodes = [helper.make_node("Concat", inputs, ["x"], axis=1)]
    last = "x"
    if hidden:
        nodes += [helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]), helper.make_node("Relu", ["h"], ["r"])]
        last = "r"
    if embeddings:
        nodes.append(helper.make_node("Cast", [last], ["embeddings"], to=TensorProto.FLOAT))
    nodes.append(helper.make_node("Gemm", [last, "w2", "b2"], ["logits"]))
    last = "logits"
    if half:
        nodes.append(helper.make_node("Cast", ["logits"], ["logits32"], to=TensorProto.FLOAT))
        last = "logits32"
    nodes.append(helper.make_node("Sigmoid", [last], ["probabilities"]))
    nodes.append(helper.make_node("TopK", ["probabilities", "k"], ["scores", "labels"], axis=1, largest=1, sorted=1))
    return nodes


def save_ort(model: str | Path, path: Path) -> None:
    """Write the model file `model` to `path` in ONNX Runtime's own format."""
    module = runtime.import_runtime()
    options = module.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    module.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
