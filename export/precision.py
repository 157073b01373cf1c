"""Approximate versions of a graph: int8 for CPUs, fp16 for GPUs.

int8 (`quantise`): every Dense multiplies 8-bit integers, unsigned activations by signed weights.

- Weights have a scale per output channel.
- Activations have one scale and zero point per tensor, *static*: taken from calibration videos, so that a video's
  answer cannot depend on its neighbours as it does where the scale is read off each batch.
- Nothing saturates on CPUs without VNNI or AMX. Their vpmaddubsw adds two neighbouring products in 16 bits:
  255 * (w[2i] + w[2i + 1]) must stay within 32,767. `_weight_scales` sees to it, for a quarter of a bit of precision;
  reading 7-bit weights would cost a whole one.
- Everything between two Dense stays float32, as do sums, biases and the final Sigmoid.

fp16 (`to_fp16`): weights and activations in half precision, for CUDA's tensor cores; inputs, their scaling and the
final Sigmoid stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from export.editor import Editor
from export.evaluate import evaluate
from export.graph import Array, Graph, Operator
from export.videos import Features
from scorer.errors import ModelError

CALIBRATION = 2048
"""Videos that ranges are taken from, at most."""
_BATCH = 512
_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_FLOOR = 1e-3
"""Smaller features, of the largest, count as so large: one that calibration hardly saw may yet come."""
_WORTH = 0.8
"""Share of the plain error that smoothing must get below to be worth its multiplication."""
_ACTIVATION_LEVELS = 255
_TINY = 1e-30
"""A range that is as good as none; a scale made of it would not be a float32."""
_PAIR_LIMIT = 127
"""Largest sum of two neighbouring weights of one sign: 128 would still fit, rounding may add the one."""


def quantise(graph: Graph, features: Features) -> Graph:
    """`graph` with every Dense in int8, its activation ranges taken from `features`.

    Raises ModelError for a graph without a Dense.
    """
    if not _dense(graph):
        raise ModelError("int8 needs a Dense layer, and this model has none", remedy="export it in fp32")
    graph = smooth_inputs(graph, features)
    ranges = activation_ranges(graph, {op.inputs[0] for op in _dense(graph).values()}, features)
    return _quantised_concats(_with_quantised(graph, ranges))


def _dense(graph: Graph) -> dict[str, Operator]:
    return {name: op for name, op in graph.ops.items() if op.kind == "dense"}


def smooth_inputs(graph: Graph, features: Features) -> Graph:
    """The same function, its scaled features made alike in size before their one scale is taken.

    x W = (x / s) (diag(s) W) for any s > 0. Features weighted by their worth differ a hundredfold, and one scale leaves
    the small ones a level or two. s_j = max|x_j| ** a moves the differences into the weights, of which the error grows
    in turn; a is the one of five exponents that gives the first Dense the least error on the calibration videos
    (Xiao et al. 2023, SmoothQuant, arXiv:2211.10438). Deeper layers have no such differences.
    """
    rows = {name: values[:_BATCH] for name, values in features.items()}
    results = evaluate(graph, rows, np.float32)
    editor, changed = Editor(graph), False
    for x in dict.fromkeys(op.inputs[0] for op in _dense(graph).values()):
        readers = [name for name in graph.readers[x] if graph.ops[name].kind == "dense"]
        if graph.ops[x].kind in ("input", "affine", "normalise"):
            scales = _best_scales([graph.ops[name] for name in readers], results[x].astype(np.float64))
            if np.any(scales != 1):
                changed = True
                _smooth(editor, x, readers, scales)
    return editor.graph() if changed else graph


def _best_scales(readers: Sequence[Operator], x: Array) -> Array:
    """s (width,) for `x` (B, width): the exponent with the least squared error over all `readers`."""
    largest = np.abs(x).max(axis=0)
    largest = np.maximum(largest, max(float(largest.max()), _TINY) * _FLOOR)
    largest = largest / np.exp(np.log(largest).mean())
    candidates = [largest**exponent for exponent in _EXPONENTS]
    errors = [sum(_error(op, x, scales) for op in readers) for scales in candidates]
    return candidates[int(np.argmin(errors))] if min(errors) < _WORTH * errors[0] else candidates[0]


def _error(op: Operator, x: Array, scales: Array) -> float:
    """Mean squared error of a Dense in int8 that reads x / scales."""
    smooth = x / scales
    values = _scale_and_zero(min(0.0, float(smooth.min())), max(0.0, float(smooth.max())))
    dense = _dense_int8(_rescaled(op, scales), "q", values)
    width = len(scales)
    layer = Graph(
        {"x": Operator("input", width=width), "q": Operator("quantise", ("x",), values, width), "y": dense}, "y"
    )
    exact = x @ op.values["weight"] + op.values["bias"]
    return float(np.square(evaluate(layer, {"x": smooth})["y"] - exact).mean())


def _smooth(graph: Editor, x: str, readers: Sequence[str], scales: Array) -> None:
    """Divide by `scales` between `x` and its `readers`, and multiply the weights of these by them."""
    values = {"scale": 1 / scales, "shift": np.zeros(len(scales))}
    divided = Operator("affine", (x,), values, graph.ops[x].width, graph.ops[x].block)
    name = graph.insert_before(readers[0], f"{x}.smooth", divided)
    for reader in readers:
        graph.change(reader, replace(_rescaled(graph.ops[reader], scales), inputs=(name,)))


def _rescaled(dense: Operator, scales: Array) -> Operator:
    return replace(dense, values={**dense.values, "weight": dense.values["weight"] * scales[:, None]})


def activation_ranges(graph: Graph, names: set[str], features: Features) -> dict[str, tuple[float, float]]:
    """Lowest and highest value of each of `names` over the first 2,048 videos, zero included."""
    ranges = dict.fromkeys(names, (0.0, 0.0))
    count = min(CALIBRATION, len(next(iter(features.values()))))
    for start in range(0, count, _BATCH):
        rows = slice(start, min(start + _BATCH, count))
        results = evaluate(graph, {name: values[rows] for name, values in features.items()}, np.float32)
        for name in names:
            low, high = ranges[name]
            ranges[name] = min(low, float(results[name].min())), max(high, float(results[name].max()))
    return ranges


def _with_quantised(graph: Graph, ranges: Mapping[str, tuple[float, float]]) -> Graph:
    """Each Dense reads a quantised copy of its input, which all Dense of that input share."""
    ops: dict[str, Operator] = {}
    for name, op in graph.ops.items():
        if op.kind == "dense":
            x = op.inputs[0]
            quantised = f"{x}.quantised"
            if quantised not in ops:
                values = _scale_and_zero(*ranges[x])
                ops[quantised] = Operator("quantise", (x,), values, graph.ops[x].width, graph.ops[x].block)
            ops[name] = _dense_int8(op, quantised, ops[quantised].values)
        else:
            ops[name] = op
    return replace(graph, ops=ops)


def _scale_and_zero(low: float, high: float) -> dict[str, Array]:
    """q = round(x / scale) + zero covers [low, high] with 0..255; 0 is exact. The scale is rounded up to 8 bits, so
    that the last bits of another machine's calibration do not change the file."""
    mantissa, exponent = np.frexp((high - low if high - low > _TINY else 1.0) / _ACTIVATION_LEVELS)
    scale = np.ldexp(np.ceil(mantissa * 256) / 256, exponent)
    return {"scale": np.asarray(scale), "zero": np.clip(np.round(-low / scale), 0, _ACTIVATION_LEVELS)}


def _dense_int8(op: Operator, quantised: str, activation: Mapping[str, Array]) -> Operator:
    weight, bias = op.values["weight"], op.values["bias"]
    scales = _weight_scales(weight)
    unit = scales * activation["scale"]
    values = {
        "weight": np.round(weight / scales),
        "weight_scale": scales,
        "bias": np.round(bias / unit),
        "unit": unit,
        "scale": activation["scale"],
        "zero": activation["zero"],
    }
    return replace(op, kind="dense_int8", inputs=(quantised,), values=values)


def _weight_scales(weight: Array) -> Array:
    """Scale of each output channel (out,) such that no two neighbouring weights of one sign sum to more than 128."""
    padded = np.concatenate([weight, np.zeros((len(weight) % 2, weight.shape[1]))])
    pairs = padded.reshape(-1, 2, weight.shape[1])
    largest = np.maximum(np.maximum(pairs, 0).sum(axis=1), np.maximum(-pairs, 0).sum(axis=1)).max(axis=0)
    scales: NDArray[np.float32] = (np.where(largest > _TINY, largest, 1.0) / _PAIR_LIMIT).astype(np.float32)
    return scales.astype(np.float64)


def _quantised_concats(graph: Graph) -> Graph:
    """quantise(concat(a, b)) = concat(quantise(a), quantise(b)): the copy moves a quarter of the bytes."""
    for name, op in graph.ops.items():
        source = graph.ops[op.inputs[0]] if op.kind == "quantise" else None
        if source is not None and source.kind == "concat":
            parts = {f"{i}.for.{name}": replace(op, inputs=(i,), width=graph.ops[i].width) for i in source.inputs}
            joined = replace(source, inputs=tuple(parts))
            changed = graph.insert_before(name, parts).with_ops({name: joined})
            return _quantised_concats(changed.live())
    return graph


def to_fp16(graph: Graph) -> Graph:
    """`graph` in fp16 from behind its inputs (and their scaling) to its logits.

    Raises ModelError where a weight does not fit into fp16.
    """
    largest = max((float(np.abs(v).max()) for op in graph.ops.values() for v in op.values.values()), default=0.0)
    if largest > float(np.finfo(np.float16).max):
        raise ModelError(f"a weight of {largest:.3g} does not fit into fp16", remedy="export it in fp32")
    ops: dict[str, Operator] = {}
    half: dict[str, str] = {}
    for name, op in graph.ops.items():
        if op.kind == "embeddings" and op.inputs[0] not in half:
            ops[f"{name}.half"] = Operator("to_fp32", op.inputs, width=op.width, block=op.block)
            ops[name] = replace(op, inputs=(f"{name}.half",))
            continue
        single = op.kind in ("input", "embeddings") or (op.kind in ("affine", "normalise") and op.inputs[0] in half)
        ops[name] = op if single else replace(op, inputs=tuple(half.get(i, i) for i in op.inputs))
        if single and op.kind != "embeddings":
            half[name] = f"{name}.half"
            ops[half[name]] = Operator("to_fp16", (name,), width=op.width, block=op.block)
    logits = Operator("to_fp32", (graph.output,), width=graph.labels)
    return Graph({**ops, "logits": logits}, "logits").live()
