"""Exact algebra on a Graph: fewer operators and weights, the same function.

`reduce` applies every rule until none applies. A rule is a function of an editor and an operator's name: where it
applies there, it changes the graph around that operator and returns True. Its docstring proves that nothing changes in
real arithmetic. What a rule looks at lies close to its operator, so only the neighbourhood of a change is tried again:
the time grows with the number of operators.

A BatchNorm at inference is an `affine` operator, y = s * x + t. The rules let it travel towards a neighbouring Dense,
which absorbs it. What blocks its way (a tanh, an LSTM of several steps) keeps it where it is, as Mul and Add.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from export.editor import Editor
from export.graph import Array, Graph, Operator

GATES = ("i", "g", "o")

Rule: TypeAlias = Callable[[Editor, str], bool]


def reduce(graph: Graph) -> Graph:
    """`graph` with every rule of this file applied until nothing changes."""
    return apply(apply(graph, FOLDS), RULES).live()


def apply(graph: Graph, rules: Sequence[Rule]) -> Graph:
    """`graph` with `rules` applied until none of them applies anywhere.

    Last in, first out, and first in the order of the graph: a scale that travels meets those before it and continues as
    one with them.
    """
    editor = Editor(graph)
    waiting = list(reversed(list(graph.ops)))
    while waiting:
        name = waiting.pop()
        if name in editor.ops and any(rule(editor, name) for rule in rules):
            waiting += reversed(editor.neighbourhood_of_changes())
    return editor.graph()


def drop_dropout(graph: Editor, name: str) -> bool:
    """Dropout(x) = x outside of training, so whoever read it reads x."""
    op = graph.ops[name]
    if op.kind != "dropout":
        return False
    graph.bypass(name, op.inputs[0])
    return True


def unroll_single_step(graph: Editor, name: str) -> bool:
    """One step from a zero state makes an LSTM a Dense layer over three gates and two products.

    With h = c = 0 before the only step, the cell's equations
        i, f, g, o = split(W x + R h + b);   c' = sigmoid(f) * c + sigmoid(i) * act(g);   h' = sigmoid(o) * act(c')
    lose R h = 0 and sigmoid(f) * c = 0: neither R nor the rows of W and b for f enter h'. Both directions read the
    same single step, so that their gates of one kind are columns of one Dense, in the order of the output.
    """
    op = graph.ops[name]
    if op.kind != "lstm" or op.steps != 1:
        return False
    last = name

    def gate(index: int) -> dict[str, Array]:
        w, b = (np.split(op.values[key], 4, axis=1)[index] for key in ("w", "b"))
        return {"weight": w.reshape(op.width, -1).T, "bias": b.reshape(op.width)}

    def part(suffix: str, kind: str, *inputs: str, values: Mapping[str, Array] | None = None) -> str:
        nonlocal last
        last = graph.insert_after(last, f"{name}.{suffix}", Operator(kind, inputs, values or {}, op.width, op.block))
        return last

    x = op.inputs[0]
    i, g, o = (part(f"{n}.dense", "dense", x, values=gate(k)) for n, k in zip(GATES, (0, 2, 3), strict=True))
    c = part("c", "multiply", part("i", "sigmoid", i), part("g", op.cell, g))
    h = part("h", "multiply", part("o", "sigmoid", o), part("c.act", op.cell, c))
    graph.bypass(name, h)
    return True


def merge_equal_terms(graph: Editor, name: str) -> bool:
    """x + x = 2 * x: the mean of two lines that start from the same vector is that vector."""
    op = graph.ops[name]
    if op.kind != "add" or op.inputs[0] != op.inputs[1]:
        return False
    double = {"scale": np.full(op.width, 2.0), "shift": np.zeros(op.width)}
    graph.change(name, replace(op, kind="affine", inputs=op.inputs[:1], values=double))
    return True


def fold_into_dense_before(graph: Editor, name: str) -> bool:
    """affine(dense(x)) = s * (x W + b) + t = x (W diag(s)) + (s * b + t): a Dense, if nobody else reads it.

    For affine(affine(x)) likewise: s2 * (s1 * x + t1) + t2 = (s2 s1) * x + (s2 t1 + t2).
    """
    op = graph.ops[name]
    if op.kind != "affine":
        return False
    source = op.inputs[0]
    before = graph.ops[source]
    if before.kind not in ("dense", "affine") or not graph.is_only_reader(name, source):
        return False
    values = {key: value * op.values["scale"] for key, value in before.values.items()}
    last = "bias" if before.kind == "dense" else "shift"
    values[last] = values[last] + op.values["shift"]
    graph.change(source, replace(before, values=values))
    graph.bypass(name, source)
    return True


def fold_into_dense_after(graph: Editor, name: str) -> bool:
    """dense(affine(x)) = (s * x + t) W + b = x (diag(s) W) + (t W + b): a Dense, if all that read it are Dense.

    Embeddings are an affine that takes another one in as `fold_into_dense_before` has it.
    """
    op = graph.ops[name]
    readers = graph.readers(name)
    if op.kind != "affine" or not readers or name == graph.output:
        return False
    if any(graph.ops[reader].kind not in ("dense", "embeddings") for reader in readers):
        return False
    for reader in readers:
        take_in = _dense_of_affine if graph.ops[reader].kind == "dense" else _embeddings_of_affine
        graph.change(reader, take_in(graph.ops[reader], op))
    graph.bypass(name, op.inputs[0])
    return True


def _dense_of_affine(dense: Operator, affine: Operator) -> Operator:
    weight, bias = dense.values["weight"], dense.values["bias"]
    return replace(
        dense,
        values={
            "weight": affine.values["scale"][:, None] * weight,
            "bias": affine.values["shift"] @ weight + bias,
        },
    )


def _embeddings_of_affine(last: Operator, affine: Operator) -> Operator:
    scale, shift = last.values["scale"], last.values["shift"]
    values = {"scale": affine.values["scale"] * scale, "shift": affine.values["shift"] * scale + shift}
    return replace(last, values=values)


def move_through_concat(graph: Editor, name: str) -> bool:
    """concat(affine(a), b) = affine'(concat(a, b)), whose scale is s on a's columns and 1 on b's, its shift t and 0."""
    op = graph.ops[name]
    if op.kind != "concat":
        return False
    moved = {source: graph.ops[source] for source in op.inputs if _is_movable(graph, source, name)}
    if not moved:
        return False
    ones = {source: np.ones(graph.ops[source].width) for source in op.inputs}
    scales = [moved[i].values["scale"] if i in moved else ones[i] for i in op.inputs]
    shifts = [moved[i].values["shift"] if i in moved else 0 * ones[i] for i in op.inputs]
    for source, affine in moved.items():
        graph.bypass(source, affine.inputs[0])
    _insert_affine(graph, name, np.concatenate(scales), np.concatenate(shifts))
    return True


def move_scale_through_leaky(graph: Editor, name: str) -> bool:
    """leaky(s * x + t) = s * leaky(x + t / s) for s > 0, since leaky(s y) = s leaky(y) there; the same for ReLU.

    The shift stays in front, the scale travels on. Where s < 0 and x = tanh(dense), s * tanh(z) = |s| * tanh(-z), as
    tanh is odd: the Dense takes the sign first (`_make_positive`).
    """
    op = graph.ops[name]
    if op.kind not in ("leaky_relu", "relu") or not _is_movable(graph, op.inputs[0], name):
        return False
    affine = op.inputs[0]
    scale, shift = (graph.ops[affine].values[key] for key in ("scale", "shift"))
    if np.all(scale == 1):
        return False
    if not np.all(scale > 0):
        return _make_positive(graph, affine)
    _insert_affine(graph, name, scale, np.zeros_like(scale))
    if np.any(shift):
        values = {"scale": np.ones_like(scale), "shift": shift / scale}
        graph.change(affine, replace(graph.ops[affine], values=values))
    else:
        graph.bypass(affine, graph.ops[affine].inputs[0])
    return True


def _make_positive(graph: Editor, name: str) -> bool:
    """affine(tanh(dense(x))) with |s| for s: -tanh(z) = tanh(-z) turns the signs into the Dense's columns."""
    affine = graph.ops[name]
    scale = affine.values["scale"]
    tanh = graph.ops[affine.inputs[0]]
    if tanh.kind != "tanh" or np.any(scale == 0) or not graph.is_only_reader(name, affine.inputs[0]):
        return False
    dense = graph.ops[tanh.inputs[0]]
    if dense.kind != "dense" or not graph.is_only_reader(affine.inputs[0], tanh.inputs[0]):
        return False
    turned = {key: value * np.sign(scale) for key, value in dense.values.items()}
    graph.change(tanh.inputs[0], replace(dense, values=turned))
    graph.change(name, replace(affine, values={**affine.values, "scale": np.abs(scale)}))
    return True


def move_scale_through_add(graph: Editor, name: str) -> bool:
    """s * a + dense(y) = s * (a + dense(y) / s): the scale travels on, and the Dense takes 1 / s, if s has no zero.

    s * a + s * b = s * (a + b) likewise. A scale that several operators read moves through all of them at once, if
    each is such a sum or a Dense, which absorbs it (`fold_into_dense_after`).
    """
    op = graph.ops[name]
    readers = graph.readers(name)
    sums = [reader for reader in readers if graph.ops[reader].kind == "add"]
    if not _is_pure_scale(op) or not sums or name == graph.output:
        return False
    if not all(graph.ops[r].kind == "dense" or (r in sums and _partner_scales(graph, name, r)) for r in readers):
        return False
    scale = op.values["scale"]
    for reader in readers:
        if graph.ops[reader].kind == "dense":
            graph.change(reader, _dense_of_affine(graph.ops[reader], op))
        else:
            _divide_partner(graph, _partner(graph, name, reader), scale)
            _insert_affine(graph, reader, scale, np.zeros_like(scale))
    graph.bypass(name, op.inputs[0])
    return True


def _partner(graph: Editor, name: str, total: str) -> str:
    """The other term of a sum."""
    first, second = graph.ops[total].inputs
    return second if first == name else first


def _partner_scales(graph: Editor, name: str, total: str) -> bool:
    """Whether the other term of the sum is a Dense, or the same scale, that nobody else reads."""
    partner = _partner(graph, name, total)
    op = graph.ops[partner]
    if partner == name or not graph.is_only_reader(total, partner):
        return False
    same = _is_pure_scale(op) and np.array_equal(op.values["scale"], graph.ops[name].values["scale"])
    return op.kind == "dense" or same


def _divide_partner(graph: Editor, partner: str, scale: Array) -> None:
    """Divide a term of a sum by `scale`: a Dense in its weights; the same scale is gone."""
    op = graph.ops[partner]
    if op.kind == "dense":
        graph.change(partner, replace(op, values={key: value / scale for key, value in op.values.items()}))
    else:
        graph.bypass(partner, op.inputs[0])


def drop_identity(graph: Editor, name: str) -> bool:
    """1 * x + 0 = x."""
    op = graph.ops[name]
    if op.kind != "affine" or np.any(op.values["scale"] != 1) or np.any(op.values["shift"]):
        return False
    graph.bypass(name, op.inputs[0])
    return True


def _is_pure_scale(op: Operator) -> bool:
    return op.kind == "affine" and not np.any(op.values["shift"]) and bool(np.all(op.values["scale"] > 0))


def _is_movable(graph: Editor, name: str, reader: str) -> bool:
    """An affine that `reader` alone reads."""
    return graph.ops[name].kind == "affine" and graph.is_only_reader(reader, name)


def _insert_affine(graph: Editor, name: str, scale: Array, shift: Array) -> None:
    """Put an affine behind operator `name`, which all that read `name` now read."""
    op = graph.ops[name]
    affine = Operator("affine", (), {"scale": scale, "shift": shift}, op.width, op.block)
    after = graph.insert_after(name, f"{name}.scale", affine)
    graph.redirect(name, after)
    graph.change(after, replace(affine, inputs=(name,)))


FOLDS: tuple[Rule, ...] = (
    drop_dropout,
    unroll_single_step,
    merge_equal_terms,
    fold_into_dense_before,
    fold_into_dense_after,
)
MOVES: tuple[Rule, ...] = (move_through_concat, move_scale_through_leaky, move_scale_through_add, drop_identity)
RULES = FOLDS + MOVES
