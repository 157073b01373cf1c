"""PyTorch model -> Graph, operator by operator as `forward` runs it, nothing reduced.

Each function mirrors the `forward` of one module of train/layers.py and train/models/. Parity with PyTorch is checked
on every export, so a mirror that lags behind its module fails there, and a module without a mirror raises
`Untranslatable`: it is then exported plainly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from export.graph import Array, Graph, Operator
from export.onnx_writer import check_inputs
from train import layers
from train.models import dmrnet, lstm


class Untranslatable(Exception):
    """A module that this file has no mirror for."""


def trace(model: nn.Module, inputs: Sequence[tuple[str, int]]) -> Graph:
    """The graph of `model`, in evaluation mode, whose forward takes one (B, width) tensor per (name, width).

    Raises Untranslatable for a module without a mirror, ModelError where an input has the name of a part of the model.
    """
    tracer = _Tracer()
    features = [tracer.add(name, Operator("input", width=width)) for name, width in inputs]
    output = tracer.call(model, "", features)
    return Graph(tracer.ops, output)


class _Tracer:
    """Collects operators; `call` translates a module and gives the name of its result."""

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
        mirror = _MIRRORS.get(type(module))
        own: Any = getattr(module, "trace", None)  # train/registry.py
        if mirror is None and own is not None:
            return str(own(self, name, inputs))
        if mirror is None:
            raise Untranslatable(f"no translation of {type(module).__name__}")
        return mirror(self, module, name, inputs)

    def width(self, name: str) -> int:
        return self.ops[name].width

    def unary(self, name: str, kind: str, x: str, **values: float) -> str:
        """An operator that keeps its input's width."""
        arrays = {key: np.asarray(value, np.float64) for key, value in values.items()}
        return self.add(name, Operator(kind, (x,), arrays, self.ops[x].width, _block(name)))

    def scale(self, name: str, x: str, scale: Array | float, shift: Array | float = 0.0) -> str:
        width = self.ops[x].width
        values = {"scale": np.broadcast_to(scale, width).astype(np.float64),
                  "shift": np.broadcast_to(shift, width).astype(np.float64)}  # fmt: skip
        return self.add(name, Operator("affine", (x,), values, width, _block(name)))

    def add_up(self, name: str, a: str, b: str) -> str:
        return self.add(name, Operator("add", (a, b), width=self.ops[a].width, block=_block(name)))

    def concat(self, name: str, inputs: list[str]) -> str:
        if len(inputs) == 1:
            return inputs[0]
        width = sum(self.ops[i].width for i in inputs)
        return self.add(name, Operator("concat", tuple(inputs), width=width, block=_block(name)))


def _block(name: str) -> str:
    """`branches.0.dense` -> `branches.0`: the module that an operator belongs to."""
    return name.rpartition(".")[0] or name


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().double().numpy()


def _join(name: str, part: str) -> str:
    return f"{name}.{part}" if name else part


def _linear(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    weight = _array(module.weight).T
    bias = _array(module.bias) if module.bias is not None else np.zeros(weight.shape[1])
    op = Operator("dense", (inputs[0],), {"weight": weight, "bias": bias}, weight.shape[1], _block(name))
    return t.add(name, op)


def _batch_norm(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    """(x - mean) / sqrt(var + eps) * gamma + beta, with the running statistics."""
    scale = _array(module.weight) / np.sqrt(_array(module.running_var) + module.eps)
    return t.scale(name, inputs[0], scale, _array(module.bias) - _array(module.running_mean) * scale)


def _leaky_relu(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    return t.unary(name, "leaky_relu", inputs[0], slope=module.negative_slope)


def _dropout(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    return t.unary(name, "dropout", inputs[0])


def _sequential(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    for part, child in module.named_children():
        inputs = [t.call(child, _join(name, part), inputs)]
    return inputs[0]


def _scaling(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    """ "l2": x / sqrt(mean(x * x) + eps) is sqrt(F) * x / sqrt(sum(x * x) + F * eps), F being the width."""
    x = inputs[0]
    if module.scaling == "raw":
        return x
    if module.scaling == "standard":
        scale = 1 / _array(module.std)
        return t.scale(name, x, scale, -_array(module.mean) * scale)
    if module.scaling == "fisher":
        x = t.scale(_join(name, "weight"), x, _array(module.weight))
    width = t.ops[x].width
    return t.scale(name, t.unary(_join(name, "unit"), "normalise", x, eps=layers.EPSILON * width), width**0.5)


def _recurrent(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    """The whole LSTM, dead weights included: taking them out is export/reduce.py's business."""
    parameters = dict(module.named_parameters())
    values = {
        key: np.stack([sum(_array(parameters[f"{n}_l0{d}"]) for n in names) for d in module.directions])
        for key, names in {"w": ["weight_ih"], "r": ["weight_hh"], "b": ["bias_ih", "bias_hh"]}.items()
    }
    width = module.hidden_size * len(module.directions)
    cell: Literal["tanh", "relu"] = "tanh" if module.activation is torch.tanh else "relu"
    return t.add(name, Operator("lstm", (inputs[0],), values, width, _block(name), steps=module.steps, cell=cell))


def _recurrent_branch(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    x = t.call(module.scale, _join(name, "scale"), inputs)
    x = t.unary(_join(name, "tanh"), "tanh", t.call(module.dense, _join(name, "dense"), [x]))
    for part in ("norm", "recurrent", "recurrent_norm", "dropout"):
        x = t.call(getattr(module, part), _join(name, part), [x])
    return x


def _recurrent_net(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    branches = [t.call(branch, _join(name, f"branches.{i}"), [x])
                for i, (branch, x) in enumerate(zip(module.branches, inputs, strict=True))]  # fmt: skip
    x = t.call(module.dense, _join(name, "dense"), [t.concat(_join(name, "concat"), branches)])
    x = t.unary(_join(name, "tanh"), "tanh", x)
    for part in ("norm", "activation", "dropout", "classify"):
        x = t.call(getattr(module, part), _join(name, part), [x])
    return x


def _fc_block(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    for part in ("dense", "norm", "activation", "dropout"):
        inputs = [t.call(getattr(module, part), _join(name, part), inputs)]
    return inputs[0]


def _bottleneck(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    for part in ("narrow", "dense", "norm"):
        inputs = [t.call(getattr(module, part), _join(name, part), inputs)]
    return inputs[0]


def _average_block(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    residual = t.call(module.residual, _join(name, "residual"), inputs)
    mean = t.scale(_join(name, "to_fp16"), t.add_up(_join(name, "add"), inputs[0], residual), 0.5)
    return t.call(module.activation, _join(name, "activation"), [mean])


def _merge_and_run(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    lines = [inputs[0], inputs[0]]
    for index, block in enumerate(module.blocks):
        lines = _merge_and_run_block(t, block, _join(name, f"blocks.{index}"), lines)
    return _mean(t, name, lines)


def _merge_and_run_block(t: _Tracer, module: Any, name: str, lines: list[str]) -> list[str]:
    mean = _mean(t, name, lines)
    results = []
    for part, x in zip(("upper", "lower"), lines, strict=True):
        residual = t.call(getattr(module, part), _join(name, part), [x])
        total = t.add_up(_join(name, f"{part}.add"), residual, mean)
        results.append(t.call(module.activation, _join(name, f"{part}.activation"), [total]))
    return results


def _mean(t: _Tracer, name: str, lines: list[str]) -> str:
    return t.scale(_join(name, "mean"), t.add_up(_join(name, "sum"), *lines), 0.5)


def _dmrnet(t: _Tracer, module: Any, name: str, inputs: list[str]) -> str:
    branches = []
    for i, (scale, branch, x) in enumerate(zip(module.scales, module.branches, inputs, strict=True)):
        scaled = t.call(scale, _join(name, f"scales.{i}"), [x])
        branches.append(t.call(branch, _join(name, f"branches.{i}"), [scaled]))
    x = t.concat(_join(name, "concat"), branches)
    for part in ("joint", "last", "classify"):
        x = t.call(getattr(module, part), _join(name, part), [x])
    return x


_MIRRORS: dict[type, Callable[[_Tracer, Any, str, list[str]], str]] = {
    nn.Linear: _linear,
    nn.BatchNorm1d: _batch_norm,
    nn.LeakyReLU: _leaky_relu,
    nn.Dropout: _dropout,
    nn.Sequential: _sequential,
    layers.Scaling: _scaling,
    lstm.Recurrent: _recurrent,
    lstm.RecurrentBranch: _recurrent_branch,
    lstm.RecurrentNet: _recurrent_net,
    dmrnet.FcBlock: _fc_block,
    dmrnet.Bottleneck: _bottleneck,
    dmrnet.AverageBlock: _average_block,
    dmrnet.MergeAndRun: _merge_and_run,
    dmrnet.DMRNet: _dmrnet,
}
