"""Graph -> ONNX, to the contract that the scorer reads (docs/formats.md).

Inputs are named after the features; `k` is an initialiser that is also an input, so that a caller may override its 10;
Sigmoid and TopK close the graph. Names, order and bytes depend on the Graph alone: the same one gives the same file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from export.graph import Graph, Operator
from scorer.errors import ModelError
from scorer.model.contract import EMBEDDINGS

TOP_K = 10
RESERVED = ("k", "scores", "labels", "probabilities", "logits")
"""Names that `finish` gives, and the plain export's result."""
CLOSING = 2
"""Nodes that `finish` adds: Sigmoid and TopK."""

OPSET = {"fp32": 11, "fp16": 11, "int8": 13}
"""The lowest that serves: TopK's order came with 11, a scale per output channel with 13."""
IR_VERSION = 7
"""The lowest that onnx pairs with opset 13 (6 and 11 go together, and every runtime of the package reads both)."""


def to_onnx(graph: Graph, precision: str, metadata: Mapping[str, str]) -> ModelProto:
    """The ONNX model of `graph`: float32 (B, width) inputs, `scores` float32 (B, k) and `labels` int64 (B, k), and
    `embeddings` float32 (B, width) where the graph has some.

    Raises ModelError where an input's name is one that the contract uses otherwise.
    """
    check_inputs(graph.inputs, RESERVED)
    writer = _written(graph)
    body = helper.make_graph(writer.nodes, "yt8m", [], [], writer.initialisers)
    finish(body, graph.output, graph.inputs, graph.labels, graph.embeddings)
    opset = helper.make_opsetid("", OPSET[precision])
    model = helper.make_model(body, opset_imports=[opset], ir_version=IR_VERSION, producer_name="yt8m-edge")
    set_metadata(model, metadata)
    return model


def node_count(graph: Graph) -> int:
    """ONNX nodes of `graph` as `to_onnx` writes it, Sigmoid and TopK among them."""
    return len(_written(graph).nodes) + CLOSING


def _written(graph: Graph) -> _Writer:
    writer = _Writer()
    half = graph.half_precision()
    for name, op in graph.ops.items():
        writer.weights = np.float16 if name in half else np.float32
        _WRITERS[op.kind](writer, name, op)
    return writer


def check_inputs(inputs: Iterable[str], taken: Iterable[str]) -> None:
    """Raise ModelError where an input has one of the names `taken` by values of the graph."""
    both = sorted(set(inputs) & set(taken))
    if both:
        reason = f"a feature called {both[0]!r} cannot be an input: the network has a value of that name"
        raise ModelError(reason, remedy="rename it in the shards")


def finish(graph: GraphProto, logits: str, inputs: Mapping[str, int], labels: int, embeddings: int = 0) -> None:
    """Put Sigmoid and TopK behind `logits` (B, labels), and give the graph the inputs and outputs of the contract, of
    which one is the value "embeddings" where these are so wide.

    Raises ModelError where an input has the name of another value.
    """
    computed = [name for node in graph.node for name in node.output]
    check_inputs(inputs, [*RESERVED, *computed, *(tensor.name for tensor in graph.initializer)])
    k = numpy_helper.from_array(np.array([min(TOP_K, labels)], np.int64), "k")
    graph.initializer.append(k)
    graph.node.extend(
        [
            helper.make_node("Sigmoid", [logits], ["probabilities"], "probabilities"),
            helper.make_node("TopK", ["probabilities", "k"], ["scores", "labels"], "top_k", axis=1),
        ]
    )
    del graph.input[:], graph.output[:]
    graph.input.extend(_input_infos(inputs))
    graph.output.extend(_output_infos())
    if embeddings:
        graph.output.append(helper.make_tensor_value_info(EMBEDDINGS, TensorProto.FLOAT, ["batch", embeddings]))


def set_metadata(model: ModelProto, metadata: Mapping[str, str]) -> None:
    """Replace all of the model's metadata, sorted by key."""
    helper.set_model_props(model, dict(sorted(metadata.items())))


def json_text(value: Any) -> str:
    """JSON without spaces, keys sorted: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def contrib_operators(model: ModelProto) -> list[str]:
    """Operators outside of ONNX's own set, as `domain::type`."""
    return sorted({f"{node.domain}::{node.op_type}" for node in model.graph.node if node.domain not in ("", "ai.onnx")})


def _input_infos(inputs: Mapping[str, int]) -> list[Any]:
    features = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", width]) for n, width in inputs.items()]
    return [*features, helper.make_tensor_value_info("k", TensorProto.INT64, [1])]


def _output_infos() -> list[Any]:
    return [
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "k"]),
        helper.make_tensor_value_info("labels", TensorProto.INT64, ["batch", "k"]),
    ]


class _Writer:
    """Collects nodes and initialisers; equal initialisers are stored once.

    weights: the type of the next operator's.
    """

    def __init__(self) -> None:
        self.weights: type[np.float16] | type[np.float32] = np.float32
        self.nodes: list[NodeProto] = []
        self.initialisers: list[TensorProto] = []
        self._stored: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node of one output and give that output's name, which is the node's as well."""
        self.nodes.append(helper.make_node(kind, inputs, [output], output, **attributes))
        return output

    def floats(self, name: str, value: NDArray) -> str:
        """Store float64 weights, rounded once to the precision of the operator; gives the initialiser's name."""
        return self.exact(name, np.asarray(value, self.weights))

    def exact(self, name: str, value: NDArray) -> str:
        """Store an array as it is; gives the initialiser's name."""
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self._stored:
            self._stored[key] = name
            self.initialisers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return self._stored[key]


def _input(writer: _Writer, name: str, op: Operator) -> None:
    """Inputs stand in the graph's signature."""


def _dense(writer: _Writer, name: str, op: Operator) -> None:
    weight = writer.floats(f"{name}.weight", op.values["weight"])
    writer.node("Gemm", [op.inputs[0], weight, writer.floats(f"{name}.bias", op.values["bias"])], name)


def _quantise(writer: _Writer, name: str, op: Operator) -> None:
    writer.node("QuantizeLinear", [op.inputs[0], *_scale_and_zero(writer, name, op)], name)


def _dense_int8(writer: _Writer, name: str, op: Operator) -> None:
    """A Gemm between dequantised operands, in standard operators; ONNX Runtime makes one integer product of it."""
    scale = writer.floats(f"{name}.weight.scale", op.values["weight_scale"])
    weight = writer.exact(f"{name}.weight", op.values["weight"].astype(np.int8))
    zero = writer.exact(f"{name}.weight.zero", np.zeros(op.width, np.int8))
    bias = writer.exact(f"{name}.bias", op.values["bias"].astype(np.int32))
    unit = writer.floats(f"{name}.unit", op.values["unit"])
    operands = [
        writer.node("DequantizeLinear", [op.inputs[0], *_scale_and_zero(writer, name, op)], f"{name}.x"),
        writer.node("DequantizeLinear", [weight, scale, zero], f"{name}.w", axis=1),
        writer.node("DequantizeLinear", [bias, unit], f"{name}.b", axis=0),
    ]
    writer.node("Gemm", operands, name)


def _scale_and_zero(writer: _Writer, name: str, op: Operator) -> list[str]:
    zero = writer.exact(f"{name}.zero", op.values["zero"].astype(np.uint8))
    return [writer.floats(f"{name}.scale", op.values["scale"]), zero]


def _cast_to_fp16(writer: _Writer, name: str, op: Operator) -> None:
    writer.node("Cast", [op.inputs[0]], name, to=TensorProto.FLOAT16)


def _cast_to_fp32(writer: _Writer, name: str, op: Operator) -> None:
    writer.node("Cast", [op.inputs[0]], name, to=TensorProto.FLOAT)


def _affine(writer: _Writer, name: str, op: Operator) -> None:
    """Mul and Add, each only where it does something."""
    scale, shift = op.values["scale"], op.values["shift"]
    x = op.inputs[0]
    if np.any(scale != 1):
        factor = writer.floats(f"{name}.scale", _narrow(scale))
        x = writer.node("Mul", [x, factor], f"{name}.scaled" if np.any(shift) else name)
    if np.any(shift):
        x = writer.node("Add", [x, writer.floats(f"{name}.shift", _narrow(shift))], name)
    if x != name:
        writer.node("Identity", [x], name)


def _narrow(values: NDArray) -> NDArray:
    """One number where all are equal."""
    return values[:1] if np.all(values == values[0]) else values


def _normalise(writer: _Writer, name: str, op: Operator) -> None:
    x = op.inputs[0]
    total = writer.node("ReduceSumSquare", [x], f"{name}.sum", axes=[1], keepdims=1)
    safe = writer.node("Add", [total, writer.floats(f"{name}.eps", op.values["eps"])], f"{name}.safe")
    writer.node("Div", [x, writer.node("Sqrt", [safe], f"{name}.norm")], name)


def _leaky_relu(writer: _Writer, name: str, op: Operator) -> None:
    writer.node("LeakyRelu", [op.inputs[0]], name, alpha=float(op.values["slope"]))


def _concat(writer: _Writer, name: str, op: Operator) -> None:
    writer.node("Concat", list(op.inputs), name, axis=1)


def _elementwise(writer: _Writer, name: str, op: Operator) -> None:
    writer.node(_ELEMENTWISE[op.kind], list(op.inputs), name)


def _lstm(writer: _Writer, name: str, op: Operator) -> None:
    """ONNX's LSTM wants (steps, B, I), gates in the order i, o, f, g, and gives (directions, B, H)."""
    w, r, b = (_iofc(op.values[key]) for key in ("w", "r", "b"))
    directions, hidden = len(w), r.shape[2]
    pieces = writer.exact(f"{name}.pieces", np.array([-1, op.steps, w.shape[2]], np.int64))
    steps_first = writer.node(
        "Transpose", [writer.node("Reshape", [op.inputs[0], pieces], f"{name}.cut")], f"{name}.steps", perm=[1, 0, 2]
    )
    weights = [
        writer.floats(f"{name}.w", w),
        writer.floats(f"{name}.r", r),
        writer.floats(f"{name}.b", np.concatenate([b, np.zeros_like(b)], axis=1)),
    ]
    attributes = {"hidden_size": hidden, "direction": "bidirectional" if directions == 2 else "forward"}
    if op.cell == "relu":
        attributes["activations"] = ["Sigmoid", "Relu", "Relu"] * directions
    last = f"{name}.last"
    writer.nodes.append(helper.make_node("LSTM", [steps_first, *weights], ["", last], f"{name}.lstm", **attributes))
    videos_first = writer.node("Transpose", [last], f"{name}.videos", perm=[1, 0, 2])
    flat = writer.exact(f"{name}.flat", np.array([-1, op.width], np.int64))
    writer.node("Reshape", [videos_first, flat], name)


def _iofc(gates: NDArray) -> NDArray:
    """PyTorch's gate order i, f, g, o along axis 1 to ONNX's i, o, f, c."""
    i, f, g, o = np.split(gates, 4, axis=1)
    return np.concatenate([i, o, f, g], axis=1)


_ELEMENTWISE = {
    "tanh": "Tanh",
    "sigmoid": "Sigmoid",
    "relu": "Relu",
    "add": "Add",
    "multiply": "Mul",
    "dropout": "Identity",
}

_WRITERS: dict[str, Callable[[_Writer, str, Operator], None]] = {
    "input": _input,
    "dense": _dense,
    "quantise": _quantise,
    "dense_int8": _dense_int8,
    "to_fp16": _cast_to_fp16,
    "to_fp32": _cast_to_fp32,
    "affine": _affine,
    "embeddings": _affine,
    "normalise": _normalise,
    "leaky_relu": _leaky_relu,
    "concat": _concat,
    "lstm": _lstm,
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
}
