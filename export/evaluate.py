"""A Graph computed by NumPy: the oracle of the reductions, the source of activation ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from export.graph import Graph, Operator


def evaluate(graph: Graph, features: Mapping[str, NDArray], dtype: type = np.float64) -> dict[str, NDArray]:
    """Every operator's result (B, width) for `features` (B, width) each, computed by numpy in `dtype`.

    The oracle of the reductions (float64) and the source of activation ranges (float32).
    """
    results: dict[str, NDArray] = {}
    for name, result in walk(graph, features, dtype):
        results[name] = result
    return results


def walk(
    graph: Graph,
    features: Mapping[str, NDArray],
    dtype: type = np.float64,
    rounded: Callable[[str, NDArray], NDArray] = lambda name, result: result,
) -> Iterator[tuple[str, NDArray]]:
    """As `evaluate`, one (name, result) at a time; kept are only those that are still read.

    rounded: what becomes of each result before it is read.
    """
    results: dict[str, NDArray] = {}
    result: NDArray
    values: dict[str, NDArray]
    unread = {name: len(readers) for name, readers in graph.readers.items()}
    for name, op in graph.ops.items():
        if op.kind == "input":
            result = np.asarray(features[name], dtype)
        else:
            values = {key: value.astype(dtype, copy=False) for key, value in op.values.items()}
            result = _compute(op, [results[i] for i in op.inputs], values)
        results[name] = rounded(name, result)
        yield name, results[name]
        for source in dict.fromkeys(op.inputs):
            unread[source] -= 1
            if not unread[source]:
                del results[source]


def _compute(op: Operator, x: list[NDArray], values: Mapping[str, NDArray]) -> NDArray:
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


def _dense_int8(
    x: NDArray, weight: NDArray, weight_scale: NDArray, bias: NDArray, unit: NDArray, scale: NDArray, zero: NDArray
) -> NDArray:
    return ((x - zero) @ weight + bias) * unit


def _round_to_fp16(x: NDArray) -> NDArray:
    return x.astype(np.float16).astype(x.dtype)


def _same(x: NDArray) -> NDArray:
    return x


def _sigmoid(x: NDArray) -> NDArray:
    return 1 / (1 + np.exp(-x))


def _relu(x: NDArray) -> NDArray:
    return np.maximum(x, 0)


def _lstm(op: Operator, x: NDArray, values: Mapping[str, NDArray]) -> NDArray:
    """The report's five equations, step by step: (B, steps * I) -> (B, D * H)."""
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
    "embeddings": _affine,
    "normalise": _normalise,
    "leaky_relu": _leaky_relu,
    "concat": _concat,
    "quantise": _quantise,
    "dense_int8": _dense_int8,
    "to_fp16": _round_to_fp16,
    "to_fp32": _same,
    "dropout": _same,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "relu": _relu,
    "add": np.add,
    "multiply": np.multiply,
}
