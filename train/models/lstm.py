"""The report's LSTM: of each input a Dense and a recurrent layer of one step; then one head for all.

Shape suffixes:
    B  videos in the batch            S  time steps (config.steps)
    F  width of an input feature      H  units of the recurrent layer, per direction (config.hidden)
    E  embedding of a branch          D  what the recurrent layer gives: H, or 2H for both directions
    L  labels
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.config import DISTILLATION, ModelConfig
from train.layers import Scaling, batch_norm
from train.registry import COMMON, ModelSpec, Tracer, join


class Recurrent(nn.LSTM):
    """nn.LSTM, its parameters, names and gate order, from a zero state to its last output: (B, S, E/S) -> (B, D).

    As Keras with return_sequences=False: the last step's output, and for both directions the forward one's at the
    last step beside the backward one's at the first. Of a single step from a zero state the forget gate and the
    recurrent weights never enter the result; that case computes the live gates alone (`_one_step`), and the
    recurrent weights are left out of training.
    """

    def __init__(self, width: int, config: ModelConfig, *, bidirectional: bool = False) -> None:
        super().__init__(width, config.hidden, batch_first=True, bidirectional=bidirectional)
        self.steps = config.steps
        self.activation = torch.tanh if config.cell == "tanh" else torch.relu
        self.directions = ("", "_reverse") if self.bidirectional else ("",)
        if self.steps == 1:
            for direction in self.directions:
                self.get_parameter(f"weight_hh_l0{direction}").requires_grad_(False)

    def forward(self, x_BSE: Tensor) -> Tensor:  # type: ignore[override]
        if self.steps == 1:
            return self._one_step(x_BSE.squeeze(1))
        if self.activation is torch.tanh:
            _, (h_2BH, _) = super().forward(x_BSE)
            return torch.cat(tuple(h_2BH), dim=1)
        return torch.cat([self._unroll(x_BSE, direction) for direction in self.directions], dim=1)

    def _one_step(self, x_BE: Tensor) -> Tensor:
        """One product for the input, cell and output gates of all directions: (B, E) -> (B, D)."""
        weight, bias = zip(*(self._live_gates(direction) for direction in self.directions), strict=True)
        gates = functional.linear(x_BE, torch.cat(weight), torch.cat(bias))
        i, g, o = gates.unflatten(1, (len(self.directions), 3, self.hidden_size)).unbind(2)
        c = torch.sigmoid(i) * self.activation(g)
        return (torch.sigmoid(o) * self.activation(c)).flatten(1)

    def _live_gates(self, direction: str) -> tuple[Tensor, Tensor]:
        """Weight (3H, E) and bias (3H) of the input, cell and output gates; nn.LSTM stacks i, f, g, o."""
        weight = self.get_parameter(f"weight_ih_l0{direction}")
        bias = self.get_parameter(f"bias_ih_l0{direction}") + self.get_parameter(f"bias_hh_l0{direction}")
        input_end, forget_end = self.hidden_size, 2 * self.hidden_size
        return (
            torch.cat([weight[:input_end], weight[forget_end:]]),
            torch.cat([bias[:input_end], bias[forget_end:]]),
        )

    def _unroll(self, x_BSE: Tensor, direction: str) -> Tensor:
        """The cell step by step, for activations that nn.LSTM does not have: (B, S, E/S) -> (B, H)."""
        w_ih, w_hh, b_ih, b_hh = (
            self.get_parameter(f"{name}_l0{direction}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        h = c = x_BSE.new_zeros(x_BSE.shape[0], self.hidden_size)
        for x_BE in (x_BSE.flip(1) if direction else x_BSE).unbind(1):
            gates = functional.linear(x_BE, w_ih, b_ih) + functional.linear(h, w_hh, b_hh)
            i, f, g, o = gates.chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * self.activation(g)
            h = torch.sigmoid(o) * self.activation(c)
        return h

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        """The whole LSTM, dead weights included: export takes them out."""

        def stacked(*kinds: str) -> Tensor:
            each = [[self.get_parameter(f"{kind}_l0{d}").double() for kind in kinds] for d in self.directions]
            return torch.stack([torch.stack(weights).sum(0) for weights in each])

        gates = {"w": stacked("weight_ih"), "r": stacked("weight_hh"), "b": stacked("bias_ih", "bias_hh")}
        return tracer.lstm(name, inputs[0], gates, self.steps, "tanh" if self.activation is torch.tanh else "relu")


class RecurrentBranch(nn.Module):
    """One input's way: Dense tanh, BatchNorm, cut into steps, recurrent layer, BatchNorm, Dropout: (B, F) -> (B, D)."""

    def __init__(self, width: int, config: ModelConfig, *, bidirectional: bool) -> None:
        super().__init__()
        self.scale = Scaling(config.scaling, width)
        self.dense = nn.Linear(width, config.embedding)
        self.norm = batch_norm(config.embedding, config)
        self.steps = config.steps
        self.recurrent = Recurrent(config.embedding // config.steps, config, bidirectional=bidirectional)
        self.recurrent_norm = batch_norm(len(self.recurrent.directions) * config.hidden, config)
        self.dropout = nn.Dropout(config.cell_dropout)

    def forward(self, x_BF: Tensor) -> Tensor:
        x_BE = self.norm(torch.tanh(self.dense(self.scale(x_BF))))
        x_BSE = x_BE.unflatten(1, (self.steps, -1))
        return self.dropout(self.recurrent_norm(self.recurrent(x_BSE)))

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        x = tracer.unary(join(name, "tanh"), "tanh", tracer.chain(self, name, ("scale", "dense"), inputs[0]))
        return tracer.chain(self, name, ("norm", "recurrent", "recurrent_norm", "dropout"), x)


class RecurrentNet(nn.Module):
    """The report's LSTM and BiLSTM: one branch an input, concatenated, then Dense tanh, BatchNorm, LeakyReLU, Dropout
    and the Dense that gives the logits."""

    def __init__(self, config: ModelConfig, *, bidirectional: bool = False) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            RecurrentBranch(width, config, bidirectional=bidirectional) for _, width in config.inputs
        )
        joint = len(config.inputs) * config.hidden * (2 if bidirectional else 1)
        self.dense = nn.Linear(joint, config.head)
        self.norm = batch_norm(config.head, config)
        self.activation = nn.LeakyReLU(config.leaky_slope)
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(config.head, config.labels)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = torch.cat([branch(x_BF) for branch, x_BF in zip(self.branches, inputs, strict=True)], dim=1)
        x = self.norm(torch.tanh(self.dense(x)))
        return self.classify(self.dropout(self.activation(x)))

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        named = zip(self.branches.named_children(), inputs, strict=True)
        branches = [tracer.call(branch, join(name, f"branches.{i}"), [x]) for (i, branch), x in named]
        x = tracer.call(self.dense, join(name, "dense"), [tracer.concat(join(name, "concat"), branches)])
        x = tracer.unary(join(name, "tanh"), "tanh", x)
        return tracer.chain(self, name, ("norm", "activation", "dropout", "classify"), x)


SETTINGS = (*COMMON, "embedding", "hidden", "head", "steps", "cell", "cell_dropout")
RECIPE = replace(DISTILLATION, epochs=20, lr=1.2e-3, weight_decay=0.3)
_PUBLISHED = ModelConfig("lstm", embedding=512)
SPEC = ModelSpec(
    build=RecurrentNet,
    settings=SETTINGS,
    published=_PUBLISHED,
    recipe=(replace(_PUBLISHED, scaling="fisher", cell_dropout=0.1, dropout=0.1), RECIPE),
)
