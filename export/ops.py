"""A network as a short list of operators: what is read from a PyTorch model, reduced, quantised and written as ONNX.

A `Graph` is a straight line of named operators in the order in which they run. Every value is a matrix (B, width);
weights are float64, so that folding them rounds nothing worth naming before the single rounding of the export.

    kind          inputs  values                                   computes, per row x
    input         -       -                                        the feature of that name
    dense         x       weight (in, out), bias (out)             x @ weight + bias
    affine        x       scale (width), shift (width)             x * scale + shift
    normalise     x       eps ()                                   x / sqrt(sum(x * x) + eps)
    tanh, sigmoid, relu                                            the function, element by element
    leaky_relu    x       slope ()                                 x where x > 0, else slope * x
    dropout       x       -                                        x (it drops nothing outside of training)
    add, multiply a, b    -                                        a + b, a * b
    concat        a, b... -                                        the rows side by side
    quantise      x       scale (), zero ()                        round(x / scale) + zero, clipped to 0..255
    dense8        q       weight (in, out), weight_scale (out),    ((q - zero) @ weight + bias) * unit, in integers up
                          bias, unit (out), scale (), zero ()      to the last product; q quantised by scale and zero,
                                                                   unit = scale * weight_scale
    half, single  x       -                                        x rounded to float16, and back to float32
    lstm          x       w (D, 4H, I), r (D, 4H, H), b (D, 4H)    the last hidden state of every direction, from a
                                                                   zero state over `steps` pieces of x (I wide each)

`Op.steps` and `Op.cell` belong to lstm alone: its D is 1, or 2 for both directions, and its gates stand in PyTorch's
order i, f, g, o.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Op:
    """One operator; `inputs` are the names of those it reads."""

    kind: str
    inputs: tuple[str, ...] = ()
    values: Mapping[str, Array] = field(default_factory=dict)
    width: int = 0
    """Columns of what it computes."""
    block: str = ""
    """The part of the model it belongs to, as a person would name it; for pictures and tables."""
    steps: int = 1
    cell: Literal["tanh", "relu"] = "tanh"


@dataclass(frozen=True)
class Graph:
    """Operators by name, in the order in which they run; `output` is the one that gives the logits."""

    ops: Mapping[str, Op]
    output: str

    @property
    def inputs(self) -> dict[str, int]:
        """Feature names and widths, in the model's order."""
        return {name: op.width for name, op in self.ops.items() if op.kind == "input"}

    @property
    def labels(self) -> int:
        return self.ops[self.output].width

    def consumers(self, name: str) -> list[str]:
        """The operators that read `name`."""
        return [other for other, op in self.ops.items() if name in op.inputs]

    def parameters(self) -> int:
        """Numbers in all weights."""
        return sum(value.size for op in self.ops.values() for value in op.values.values())

    def flops(self) -> int:
        """Floating-point operations per video: two for every product of a matrix, one per element of the rest."""
        return sum(_flops(op) for op in self.ops.values())

    def with_ops(self, changed: Mapping[str, Op]) -> Graph:
        """The same line with some operators exchanged in place."""
        return replace(self, ops={name: changed.get(name, op) for name, op in self.ops.items()})

    def without(self, name: str, instead: str) -> Graph:
        """The line without operator `name`: whoever read it reads `instead`."""
        ops = {
            other: replace(op, inputs=tuple(instead if i == name else i for i in op.inputs))
            for other, op in self.ops.items()
            if other != name
        }
        return Graph(ops, instead if self.output == name else self.output)

    def insert_before(self, name: str, new: Mapping[str, Op]) -> Graph:
        """The line with operators `new` put in front of `name`."""
        ops: dict[str, Op] = {}
        for other, op in self.ops.items():
            if other == name:
                ops.update(new)
            ops[other] = op
        return replace(self, ops=ops)

    def live(self) -> Graph:
        """The line without operators that the output does not depend on; inputs stay, being the model's schema."""
        needed = {self.output}
        for name, op in reversed(list(self.ops.items())):
            if name in needed:
                needed.update(op.inputs)
        return replace(self, ops={n: op for n, op in self.ops.items() if n in needed or op.kind == "input"})


def evaluate(graph: Graph, features: Mapping[str, NDArray], dtype: type = np.float64) -> dict[str, NDArray]:
    """Every operator's result (B, width) for `features` (B, width) each, computed by numpy in `dtype`.

    The oracle of the reductions (float64) and the source of activation ranges (float32).
    """
    results: dict[str, NDArray] = {}
    for name, result in walk(graph, features, dtype):
        results[name] = result
    return results


def walk(graph: Graph, features: Mapping[str, NDArray], dtype: type = np.float64) -> Iterator[tuple[str, NDArray]]:
    """As `evaluate`, one (name, result) at a time."""
    results: dict[str, NDArray] = {}
    values: dict[str, NDArray]
    for name, op in graph.ops.items():
        if op.kind == "input":
            results[name] = np.asarray(features[name], dtype)
        else:
            values = {key: value.astype(dtype) for key, value in op.values.items()}
            results[name] = _compute(op, [results[i] for i in op.inputs], values)
        yield name, results[name]


def _compute(op: Op, x: list[NDArray], values: Mapping[str, NDArray]) -> NDArray:
    if op.kind == "lstm":
        return _lstm(op, x[0], values)
    return _FUNCTIONS[op.kind](*x, **values)


def _dense(x: NDArray, weight: NDArray, bias: NDArray) -> NDArray:
    return x @ weight + bias


def _affine(x: NDArray, scale: NDArray, shift: NDArray) -> NDArray:
    return x * scale + shift


def _normalise(x: NDArray, eps: NDArray) -> NDArray:
    return x / np.sqrt(np.square(x).sum(axis=1, keepdims=True) + eps)


def _leaky_relu(x: NDArray, slope: NDArray) -> NDArray:
    return np.where(x > 0, x, slope * x)


def _concat(*parts: NDArray) -> NDArray:
    return np.concatenate(parts, axis=1)


def _quantise(x: NDArray, scale: NDArray, zero: NDArray) -> NDArray:
    return np.clip(np.round(x / scale) + zero, 0, 255)


def _dense8(
    x: NDArray, weight: NDArray, weight_scale: NDArray, bias: NDArray, unit: NDArray, scale: NDArray, zero: NDArray
) -> NDArray:
    return ((x - zero) @ weight + bias) * unit


def _half(x: NDArray) -> NDArray:
    return x.astype(np.float16).astype(x.dtype)


def _same(x: NDArray) -> NDArray:
    return x


def _sigmoid(x: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-x))


def _relu(x: NDArray) -> NDArray:
    return np.maximum(x, 0)


def _lstm(op: Op, x: NDArray, values: Mapping[str, NDArray]) -> NDArray:
    """The paper's five equations, step by step: (B, steps * I) -> (B, D * H)."""
    pieces = x.reshape(len(x), op.steps, -1)
    last = []
    for direction, (w, r, b) in enumerate(zip(values["w"], values["r"], values["b"], strict=True)):
        h = c = np.zeros((len(x), r.shape[1]), x.dtype)
        for step in range(op.steps) if direction == 0 else reversed(range(op.steps)):
            i, f, g, o = np.split(pieces[:, step] @ w.T + h @ r.T + b, 4, axis=1)
            c = _sigmoid(f) * c + _sigmoid(i) * _FUNCTIONS[op.cell](g)
            h = _sigmoid(o) * _FUNCTIONS[op.cell](c)
        last.append(h)
    return np.concatenate(last, axis=1)


_FUNCTIONS: dict[str, Callable[..., NDArray]] = {
    "dense": _dense,
    "affine": _affine,
    "normalise": _normalise,
    "leaky_relu": _leaky_relu,
    "concat": _concat,
    "quantise": _quantise,
    "dense8": _dense8,
    "half": _half,
    "single": _same,
    "dropout": _same,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "relu": _relu,
    "add": np.add,
    "multiply": np.multiply,
}


def _flops(op: Op) -> int:
    match op.kind:
        case "input" | "concat" | "dropout" | "half" | "single":
            return 0
        case "dense" | "dense8":
            return 2 * op.values["weight"].size
        case "lstm":
            return op.steps * 2 * (op.values["w"].size + op.values["r"].size) + op.steps * 9 * op.width
        case "affine":
            return 2 * op.width
        case "normalise":
            return 3 * op.width
        case _:
            return op.width
