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
    embeddings    x       scale (width), shift (width)             x * scale + shift, in float32: an output of its own
    add, multiply a, b    -                                        a + b, a * b
    concat        a, b... -                                        the rows side by side
    quantise      x       scale (), zero ()                        round(x / scale) + zero, clipped to 0..255
    dense_int8    q       weight (in, out), weight_scale (out),    ((q - zero) @ weight + bias) * unit, in integers up
                          bias, unit (out), scale (), zero ()      to the last product; q quantised by scale and zero,
                                                                   unit = scale * weight_scale
    to_fp16, to_fp32  x   -                                        x rounded to float16, and back to float32
    lstm          x       w (D, 4H, I), r (D, 4H, H), b (D, 4H)    the last hidden state of every direction, from a
                                                                   zero state over `steps` pieces of x (I wide each)

`steps` and `cell` belong to lstm alone: its D is 1, or 2 for both directions, and its gates stand in PyTorch's order
i, f, g, o.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scorer.errors import ModelError
from scorer.model.contract import EMBEDDINGS

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Operator:
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
    """Operators by name, in the order in which they run; `output` is the one that gives the logits.

    There may be one of the kind "embeddings", which nobody reads: see `with_embeddings`.
    """

    ops: Mapping[str, Operator]
    output: str

    @property
    def inputs(self) -> dict[str, int]:
        """Feature names and widths, in the model's order."""
        return {name: op.width for name, op in self.ops.items() if op.kind == "input"}

    @property
    def labels(self) -> int:
        return self.ops[self.output].width

    @property
    def embeddings(self) -> int:
        """How wide the embeddings are; 0 where there are none."""
        return self.ops[EMBEDDINGS].width if EMBEDDINGS in self.ops else 0

    @cached_property
    def readers(self) -> Mapping[str, list[str]]:
        """The operators that read each operator, in the order in which they run."""
        readers: dict[str, list[str]] = {name: [] for name in self.ops}
        for name, op in self.ops.items():
            for source in dict.fromkeys(op.inputs):
                readers[source].append(name)
        return readers

    def half_precision(self) -> set[str]:
        """The operators that compute in float16: from a cast to it up to the cast back."""
        half: set[str] = set()
        for name, op in self.ops.items():
            if op.kind == "to_fp16" or (op.kind != "to_fp32" and any(source in half for source in op.inputs)):
                half.add(name)
        return half

    def parameters(self) -> int:
        """Numbers in all weights."""
        return sum(value.size for op in self.ops.values() for value in op.values.values())

    def flops(self) -> int:
        """Floating-point operations per video: two for every product of a matrix, one per element of the rest."""
        return sum(_flops(op) for op in self.ops.values())

    def with_ops(self, changed: Mapping[str, Operator]) -> Graph:
        """The same line with some operators exchanged in place."""
        return replace(self, ops={name: changed.get(name, op) for name, op in self.ops.items()})

    def insert_before(self, name: str, new: Mapping[str, Operator]) -> Graph:
        """The line with operators `new` put in front of `name`."""
        ops: dict[str, Operator] = {}
        for other, op in self.ops.items():
            if other == name:
                ops.update(new)
            ops[other] = op
        return replace(self, ops=ops)

    def live(self) -> Graph:
        """The line without operators that no output depends on; inputs stay, being the model's schema."""
        needed = {self.output, EMBEDDINGS}
        for name, op in reversed(list(self.ops.items())):
            if name in needed:
                needed.update(op.inputs)
        return replace(self, ops={n: op for n, op in self.ops.items() if n in needed or op.kind == "input"})


def with_embeddings(graph: Graph) -> Graph:
    """`graph` with what its last Dense, which gives the logits, reads of each video as an output too.

    That is the result of all that stands in front of the Dense in the network: of the report's models, in evaluation
    mode, the last LeakyReLU's.

    Raises ModelError where the last operator is no Dense, or the name is taken.
    """
    last = graph.ops[graph.output]
    if last.kind != "dense" or EMBEDDINGS in graph.ops:
        why = f"{EMBEDDINGS} is the name of another value" if last.kind == "dense" else "its last layer is no Dense"
        raise ModelError(f"the model cannot give embeddings: {why}", remedy="export it without")
    x = last.inputs[0]
    width = graph.ops[x].width
    values = {"scale": np.ones(width), "shift": np.zeros(width)}
    new = Operator(EMBEDDINGS, (x,), values, width, last.block)
    return replace(graph, ops={**graph.ops, EMBEDDINGS: new})


def _flops(op: Operator) -> int:
    match op.kind:
        case "input" | "concat" | "dropout" | "to_fp16" | "to_fp32":
            return 0
        case "dense" | "dense_int8":
            return 2 * op.values["weight"].size
        case "lstm":
            return op.steps * 2 * (op.values["w"].size + op.values["r"].size) + op.steps * 9 * op.width
        case "affine" | "embeddings":
            return 2 * op.width
        case "normalise":
            return 3 * op.width
        case _:
            return op.width
