"""PyTorch model -> Graph, operator by operator as `forward` runs it, nothing reduced.

torch's own modules are translated here, ours by their method `trace`, which stands beside their `forward` (`Tracer` of
train/registry.py). Parity with PyTorch is checked on every export, so a `trace` that lags behind its `forward` fails
there; a model with a module that has none raises `Untranslatable` and is exported plainly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from export.graph import Array, Graph, Operator
from export.onnx_writer import check_inputs
from train.registry import join


class Untranslatable(Exception):
    """A module that neither this file nor a method `trace` translates."""


def trace(model: nn.Module, inputs: Sequence[tuple[str, int]]) -> Graph:
    """The graph of `model`, in evaluation mode, whose forward takes one (B, width) tensor per (name, width).

    Raises Untranslatable for a module without a translation, ModelError where an input has the name of a part of the
    model.
    """
    tracer = GraphTracer()
    features = [tracer.add(name, Operator("input", width=width)) for name, width in inputs]
    output = tracer.call(model, "", features)
    return Graph(tracer.ops, output)


class GraphTracer:
    """The Tracer (train/registry.py) that collects the operators of a Graph."""

    def __init__(self) -> None:
        self.ops: dict[str, Operator] = {}

    def add(self, name: str, op: Operator) -> str:
        if name in self.ops and self.ops[name].kind == "input":
            check_inputs([name], self.ops)
        if name in self.ops:
            raise ValueError(f"two operators called {name}")
        self.ops[name] = op
        return name

    def call(self, module: nn.Module, name: str, inputs: list[str]) -> str:
        translate = _TRANSLATIONS.get(type(module))
        if translate is not None:
            return translate(self, module, name, inputs[0])
        own: Any = getattr(module, "trace", None)
        if own is None:
            raise Untranslatable(f"no translation of {type(module).__name__}")
        return str(own(self, name, inputs))

    def chain(self, module: nn.Module, name: str, parts: Sequence[str], x: str) -> str:
        for part in parts:
            x = self.call(module.get_submodule(part), join(name, part), [x])
        return x

    def width(self, name: str) -> int:
        return self.ops[name].width

    def unary(self, name: str, kind: str, x: str, **values: float) -> str:
        arrays = {key: np.asarray(value, np.float64) for key, value in values.items()}
        return self.add(name, Operator(kind, (x,), arrays, self.width(x), _block(name)))

    def scale(self, name: str, x: str, scale: Tensor | float, shift: Tensor | float = 0.0) -> str:
        width = self.width(x)
        values = {"scale": np.broadcast_to(_array(scale), width), "shift": np.broadcast_to(_array(shift), width)}
        return self.add(name, Operator("affine", (x,), values, width, _block(name)))

    def add_up(self, name: str, a: str, b: str) -> str:
        return self.add(name, Operator("add", (a, b), width=self.width(a), block=_block(name)))

    def concat(self, name: str, inputs: list[str]) -> str:
        if len(inputs) == 1:
            return inputs[0]
        return self.add(name, Operator("concat", tuple(inputs), width=sum(map(self.width, inputs)), block=_block(name)))

    def lstm(self, name: str, x: str, gates: Mapping[str, Tensor], steps: int, cell: Literal["tanh", "relu"]) -> str:
        values = {key: _array(gate) for key, gate in gates.items()}
        directions, _, hidden = values["r"].shape
        return self.add(name, Operator("lstm", (x,), values, directions * hidden, _block(name), steps=steps, cell=cell))


def _block(name: str) -> str:
    """`branches.0.dense` -> `branches.0`: the module that an operator belongs to."""
    return name.rpartition(".")[0] or name


def _array(values: Tensor | float) -> Array:
    return values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)


def _linear(tracer: GraphTracer, module: Any, name: str, x: str) -> str:
    weight = _array(module.weight).T
    bias = _array(module.bias) if module.bias is not None else np.zeros(weight.shape[1])
    return tracer.add(name, Operator("dense", (x,), {"weight": weight, "bias": bias}, weight.shape[1], _block(name)))


def _batch_norm(tracer: GraphTracer, module: Any, name: str, x: str) -> str:
    """(x - mean) / sqrt(var + eps) * gamma + beta, with the running statistics."""
    scale = module.weight.double() / (module.running_var.double() + module.eps).sqrt()
    return tracer.scale(name, x, scale, module.bias.double() - module.running_mean.double() * scale)


def _leaky_relu(tracer: GraphTracer, module: Any, name: str, x: str) -> str:
    return tracer.unary(name, "leaky_relu", x, slope=module.negative_slope)


def _dropout(tracer: GraphTracer, module: Any, name: str, x: str) -> str:
    return tracer.unary(name, "dropout", x)


def _sequential(tracer: GraphTracer, module: Any, name: str, x: str) -> str:
    return tracer.chain(module, name, [part for part, _ in module.named_children()], x)


_TRANSLATIONS: dict[type, Callable[[GraphTracer, Any, str, str], str]] = {
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.LeakyReLU: _leaky_relu,
    nn.Dropout: _dropout,
    nn.Sequential: _sequential,
}
