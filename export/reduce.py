"""Exact algebra on a Graph: fewer operators and weights, the same function.

`reduce` applies every rule until none applies. Each rule is a function Graph -> Graph that stands alone, proves in its
docstring that nothing changes in real arithmetic, and returns its argument itself where it does not apply.

A BatchNorm at inference is an `affine` operator, y = s * x + t. The rules let it travel towards a neighbouring Dense,
which swallows it. What blocks its way (a tanh, an LSTM of several steps) keeps it where it is, as Mul and Add.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from export.ops import Array, Graph, Op

GATES = ("i", "g", "o")


def reduce(graph: Graph) -> Graph:
    """`graph` with every rule of this file applied until nothing changes."""
    while True:
        smaller = graph
        for rule in RULES:
            smaller = rule(smaller)
        if smaller is graph:
            return graph.live()
        graph = smaller


def drop_dropout(graph: Graph) -> Graph:
    """Dropout(x) = x outside of training, so whoever read it reads x."""
    for name, op in graph.ops.items():
        if op.kind == "dropout":
            return drop_dropout(graph.without(name, op.inputs[0]))
    return graph


def unroll_single_step(graph: Graph) -> Graph:
    """One step from a zero state makes an LSTM a Dense layer over three gates and two products.

    With h = c = 0 before the only step, the cell's equations
        i, f, g, o = split(W x + R h + b);   c' = sigmoid(f) * c + sigmoid(i) * act(g);   h' = sigmoid(o) * act(c')
    lose R h = 0 and sigmoid(f) * c = 0: neither R nor the rows of W and b for f enter h'. Both directions read the
    same single step, so that their gates of one kind are columns of one Dense, in the order of the output.
    """
    for name, op in graph.ops.items():
        if op.kind == "lstm" and op.steps == 1:
            return unroll_single_step(_unrolled(graph, name, op))
    return graph


def _unrolled(graph: Graph, name: str, op: Op) -> Graph:
    def gate(index: int) -> dict[str, Array]:
        w, b = (np.split(op.values[key], 4, axis=1)[index] for key in ("w", "b"))
        return {"weight": w.reshape(op.width, -1).T, "bias": b.reshape(op.width)}

    def part(suffix: str, kind: str, *inputs: str, values: Mapping[str, Array] | None = None) -> str:
        new[f"{name}.{suffix}"] = Op(kind, inputs, values or {}, op.width, op.block)
        return f"{name}.{suffix}"

    new: dict[str, Op] = {}
    x = op.inputs[0]
    i, g, o = (part(f"{n}.dense", "dense", x, values=gate(k)) for n, k in zip(GATES, (0, 2, 3), strict=True))
    c = part("c", "multiply", part("i", "sigmoid", i), part("g", op.cell, g))
    h = part("h", "multiply", part("o", "sigmoid", o), part("c.act", op.cell, c))
    return graph.insert_before(name, new).without(name, h)


def fold_into_dense_before(graph: Graph) -> Graph:
    """affine(dense(x)) = s * (x W + b) + t = x (W diag(s)) + (s * b + t): a Dense, if nobody else reads it.

    For affine(affine(x)) likewise: s2 * (s1 * x + t1) + t2 = (s2 s1) * x + (s2 t1 + t2).
    """
    for name, op in _affines(graph):
        before = graph.ops[op.inputs[0]]
        if before.kind in ("dense", "affine") and graph.consumers(op.inputs[0]) == [name]:
            values = {key: value * op.values["scale"] for key, value in before.values.items()}
            last = "bias" if before.kind == "dense" else "shift"
            values[last] = values[last] + op.values["shift"]
            changed = graph.with_ops({op.inputs[0]: replace(before, values=values)})
            return fold_into_dense_before(changed.without(name, op.inputs[0]))
    return graph


def fold_into_dense_after(graph: Graph) -> Graph:
    """dense(affine(x)) = (s * x + t) W + b = x (diag(s) W) + (t W + b): a Dense, if all that read it are Dense."""
    for name, op in _affines(graph):
        readers = graph.consumers(name)
        if readers and name != graph.output and all(graph.ops[r].kind == "dense" for r in readers):
            changed = {r: _dense_of_affine(graph.ops[r], op) for r in readers}
            return fold_into_dense_after(graph.with_ops(changed).without(name, op.inputs[0]))
    return graph


def _dense_of_affine(dense: Op, affine: Op) -> Op:
    weight, bias = dense.values["weight"], dense.values["bias"]
    return replace(
        dense,
        values={
            "weight": affine.values["scale"][:, None] * weight,
            "bias": affine.values["shift"] @ weight + bias,
        },
    )


def move_through_concat(graph: Graph) -> Graph:
    """concat(affine(a), b) = affine'(concat(a, b)), whose scale is s on a's columns and 1 on b's, its shift t and 0."""
    for name, op in graph.ops.items():
        if op.kind == "concat" and any(_movable(graph, i, name) for i in op.inputs):
            return move_through_concat(_affine_after(graph, name, *_concat_parts(graph, name, op)))
    return graph


def _concat_parts(graph: Graph, name: str, op: Op) -> tuple[tuple[str, ...], Array, Array]:
    inputs, scales, shifts = [], [], []
    for i in op.inputs:
        source = graph.ops[i]
        moves = _movable(graph, i, name)
        inputs.append(source.inputs[0] if moves else i)
        scales.append(source.values["scale"] if moves else np.ones(source.width))
        shifts.append(source.values["shift"] if moves else np.zeros(source.width))
    return tuple(inputs), np.concatenate(scales), np.concatenate(shifts)


def move_scale_through_leaky(graph: Graph) -> Graph:
    """leaky(s * x + t) = s * leaky(x + t / s) for s > 0, since leaky(s y) = s leaky(y) there; the same for ReLU.

    The shift stays in front, the scale travels on. Where s < 0 and x = tanh(dense), s * tanh(z) = |s| * tanh(-z), as
    tanh is odd: the Dense takes the sign first (`_make_positive`).
    """
    for name, op in graph.ops.items():
        if op.kind in ("leaky_relu", "relu") and _movable(graph, op.inputs[0], name):
            affine = graph.ops[op.inputs[0]]
            scale = affine.values["scale"]
            if np.all(scale == 1):
                continue
            if np.all(scale > 0):
                return move_scale_through_leaky(_leaky_before_scale(graph, name, op.inputs[0]))
            positive = _make_positive(graph, op.inputs[0])
            if positive is not graph:
                return move_scale_through_leaky(positive)
    return graph


def _leaky_before_scale(graph: Graph, name: str, affine: str) -> Graph:
    op = graph.ops[affine]
    scale, shift = op.values["scale"], op.values["shift"]
    graph = _affine_after(graph, name, (affine,), scale, np.zeros_like(scale))
    if np.any(shift):
        return graph.with_ops({affine: replace(op, values={"scale": np.ones_like(scale), "shift": shift / scale})})
    return graph.without(affine, op.inputs[0])


def _make_positive(graph: Graph, name: str) -> Graph:
    """affine(tanh(dense(x))) with |s| for s: -tanh(z) = tanh(-z) turns the signs into the Dense's columns."""
    affine = graph.ops[name]
    scale = affine.values["scale"]
    tanh = graph.ops[affine.inputs[0]]
    if tanh.kind != "tanh" or np.any(scale == 0) or graph.consumers(affine.inputs[0]) != [name]:
        return graph
    dense = graph.ops[tanh.inputs[0]]
    if dense.kind != "dense" or graph.consumers(tanh.inputs[0]) != [affine.inputs[0]]:
        return graph
    turned = {key: value * np.sign(scale) for key, value in dense.values.items()}
    positive = {**affine.values, "scale": np.abs(scale)}
    return graph.with_ops({tanh.inputs[0]: replace(dense, values=turned), name: replace(affine, values=positive)})


def merge_equal_terms(graph: Graph) -> Graph:
    """x + x = 2 * x: the mean of two lines that start from the same vector is that vector."""
    for name, op in graph.ops.items():
        if op.kind == "add" and op.inputs[0] == op.inputs[1]:
            double = {"scale": np.full(op.width, 2.0), "shift": np.zeros(op.width)}
            return merge_equal_terms(
                graph.with_ops({name: replace(op, kind="affine", inputs=op.inputs[:1], values=double)})
            )
    return graph


def drop_identity(graph: Graph) -> Graph:
    """1 * x + 0 = x."""
    for name, op in _affines(graph):
        if np.all(op.values["scale"] == 1) and not np.any(op.values["shift"]):
            return drop_identity(graph.without(name, op.inputs[0]))
    return graph


def move_scale_through_add(graph: Graph) -> Graph:
    """s * a + dense(y) = s * (a + dense(y) / s): the scale travels on, and the Dense takes 1 / s, if s has no zero.

    s * a + s * b = s * (a + b) likewise. A scale that several operators read moves through all of them at once, if
    each is such a sum or a Dense, which swallows it (`fold_into_dense_after`).
    """
    for name, op in _affines(graph):
        if _pure_scale(op) and _absorbable(graph, name):
            return move_scale_through_add(_through_adds(graph, name, op))
    return graph


def _absorbable(graph: Graph, name: str) -> bool:
    readers = graph.consumers(name)
    sums = [r for r in readers if graph.ops[r].kind == "add"]
    return bool(sums) and all(
        graph.ops[r].kind == "dense" or (r in sums and _partner_scales(graph, name, r)) for r in readers
    )


def _partner_scales(graph: Graph, name: str, total: str) -> bool:
    """Whether the other term of the sum is a Dense, or the same scale, that nobody else reads."""
    partner = _partner(graph, name, total)
    op = graph.ops[partner]
    if graph.consumers(partner) != [total]:
        return False
    return op.kind == "dense" or (_pure_scale(op) and np.array_equal(op.values["scale"], _scale(graph, name)))


def _through_adds(graph: Graph, name: str, op: Op) -> Graph:
    scale = op.values["scale"]
    for reader in graph.consumers(name):
        if graph.ops[reader].kind == "dense":
            graph = graph.with_ops({reader: _dense_of_affine(graph.ops[reader], op)})
            continue
        partner = _partner(graph, name, reader)
        other = graph.ops[partner]
        if other.kind == "dense":
            divided = {key: value / scale for key, value in other.values.items()}
            graph = graph.with_ops({partner: replace(other, values=divided)})
        else:
            graph = graph.without(partner, other.inputs[0])
        graph = _affine_after(graph, reader, graph.ops[reader].inputs, scale, np.zeros_like(scale))
    return graph.without(name, op.inputs[0])


def _partner(graph: Graph, name: str, total: str) -> str:
    first, second = graph.ops[total].inputs
    return second if first == name else first


def _scale(graph: Graph, name: str) -> Array:
    return graph.ops[name].values["scale"]


def _pure_scale(op: Op) -> bool:
    return op.kind == "affine" and not np.any(op.values["shift"]) and bool(np.all(op.values["scale"] > 0))


def _affines(graph: Graph) -> Iterator[tuple[str, Op]]:
    return ((name, op) for name, op in graph.ops.items() if op.kind == "affine")


def _movable(graph: Graph, name: str, reader: str) -> bool:
    """An affine that `reader` alone reads."""
    return graph.ops[name].kind == "affine" and graph.consumers(name) == [reader]


def _affine_after(graph: Graph, name: str, inputs: tuple[str, ...], scale: Array, shift: Array) -> Graph:
    """Operator `name` reads `inputs`, and an affine follows it, which all that read `name` now read."""
    op = graph.ops[name]
    after = f"{name}.scale"
    while after in graph.ops:
        after += "+"
    ops: dict[str, Op] = {}
    for other, old in graph.ops.items():
        ops[other] = replace(old, inputs=tuple(after if i == name else i for i in old.inputs))
        if other == name:
            ops[name] = replace(op, inputs=inputs)
            ops[after] = Op("affine", (name,), {"scale": scale, "shift": shift}, op.width, op.block)
    return Graph(ops, after if graph.output == name else graph.output)


RULES: tuple[Callable[[Graph], Graph], ...] = (
    drop_dropout,
    unroll_single_step,
    merge_equal_terms,
    fold_into_dense_before,
    fold_into_dense_after,
    move_through_concat,
    move_scale_through_leaky,
    move_scale_through_add,
    drop_identity,
)
