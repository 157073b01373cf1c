"""The paper's three models, from features to logits: BiLSTM, LSTM and DMRNet.

`build(config)` makes one; calling it with one (B, F) tensor per input of `config.inputs`, in that order, gives the
logits (B, L). Sources: Akopyan and Khashba 2017 (arXiv:1706.04488); Zhao et al. 2017, "Deep Convolutional Neural
Networks with Merge-and-Run Mappings" (arXiv:1611.07718) for DMRNet's `run` form.

Shape suffixes:
    B  videos in the batch            S  time steps (config.steps)
    F  width of an input feature      H  units of the recurrent layer, per direction (config.hidden)
    E  embedding of a branch          D  what the recurrent layer gives: H, or 2H for both directions
    W  width of a DMRNet block        L  labels
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.config import ModelConfig

EPSILON = 1e-6
"""Added to a vector's mean square before the root, for vectors of zeros; ONNX Runtime's fusions lose one of 1e-12."""


class Scaling(nn.Module):
    """One input's scaling: (B, F) -> (B, F).

    "raw" changes nothing. "l2" divides each vector by its root mean square: the L2-normalised vector times sqrt(F),
    so that what enters the first Dense is of order 1 whatever the width. "standard" subtracts the training videos'
    mean per feature and divides by their deviation. "fisher" multiplies each feature by the root of its Fisher ratio
    (train/data.py), then does what "l2" does: YouTube-8M's features are whitened, so that in their raw form the many
    that tell labels apart badly weigh as much as the few that do it well. What is measured on the training videos is
    held in buffers that the training sets (`set_statistics`, `set_weight`).
    """

    mean: Tensor
    std: Tensor
    weight: Tensor

    def __init__(self, scaling: str, width: int) -> None:
        super().__init__()
        self.scaling = scaling
        if scaling == "standard":
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("std", torch.ones(width))
        if scaling == "fisher":
            self.register_buffer("weight", torch.ones(width))

    def set_statistics(self, mean_F: Tensor, std_F: Tensor) -> None:
        """What "standard" subtracts and divides by."""
        self.mean.copy_(mean_F)
        self.std.copy_(std_F)

    def set_weight(self, weight_F: Tensor) -> None:
        """What "fisher" multiplies by."""
        self.weight.copy_(weight_F)

    def forward(self, x_BF: Tensor) -> Tensor:
        if self.scaling == "fisher":
            x_BF = x_BF * self.weight
        if self.scaling in ("l2", "fisher"):
            return x_BF * torch.rsqrt(x_BF.square().mean(dim=1, keepdim=True) + EPSILON)
        if self.scaling == "standard":
            return (x_BF - self.mean) / self.std
        return x_BF


class Recurrent(nn.LSTM):
    """nn.LSTM, its parameters, names and gate order, from a zero state to its last output: (B, S, E/S) -> (B, D).

    As Keras with return_sequences=False: the last step's output, and for both directions the forward one's at the
    last step beside the backward one's at the first. Of a single step from a zero state the forget gate and the
    recurrent weights never enter the result; that case computes the live gates alone (`_one_step`), and the
    recurrent weights are left out of training.
    """

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__(width, config.hidden, batch_first=True, bidirectional=config.name == "bilstm")
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


class RecurrentBranch(nn.Module):
    """One input's way: Dense tanh, BatchNorm, cut into steps, recurrent layer, BatchNorm, Dropout: (B, F) -> (B, D)."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.scale = Scaling(config.scaling, width)
        self.dense = nn.Linear(width, config.embedding)
        self.norm = _batch_norm(config.embedding, config)
        self.steps = config.steps
        self.recurrent = Recurrent(config.embedding // config.steps, config)
        self.recurrent_norm = _batch_norm(recurrent_width(config), config)
        self.dropout = nn.Dropout(config.cell_dropout)

    def forward(self, x_BF: Tensor) -> Tensor:
        x_BE = self.norm(torch.tanh(self.dense(self.scale(x_BF))))
        x_BSE = x_BE.unflatten(1, (self.steps, -1))
        return self.dropout(self.recurrent_norm(self.recurrent(x_BSE)))


class RecurrentNet(nn.Module):
    """The paper's LSTM and BiLSTM: one branch an input, concatenated, then Dense tanh, BatchNorm, LeakyReLU, Dropout
    and the Dense that gives the logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.branches = nn.ModuleList(RecurrentBranch(width, config) for _, width in config.inputs)
        self.dense = nn.Linear(len(config.inputs) * recurrent_width(config), config.head)
        self.norm = _batch_norm(config.head, config)
        self.activation = nn.LeakyReLU(config.leaky_slope)
        self.dropout = nn.Dropout(config.dropout)
        self.classify = nn.Linear(config.head, config.labels)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = torch.cat([branch(x_BF) for branch, x_BF in zip(self.branches, inputs, strict=True)], dim=1)
        x = self.norm(torch.tanh(self.dense(x)))
        return self.classify(self.dropout(self.activation(x)))


class FcBlock(nn.Module):
    """The paper's fc_block: Dense, BatchNorm, LeakyReLU, Dropout."""

    def __init__(self, width: int, units: int, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, units)
        self.norm = _batch_norm(units, config)
        self.activation = nn.LeakyReLU(config.leaky_slope)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.activation(self.norm(self.dense(x))))


class Bottleneck(nn.Module):
    """A residual branch: an fc_block down to W / bottleneck, then Dense and BatchNorm back to W: (B, W) -> (B, W)."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        middle = max(1, width // config.bottleneck)
        self.narrow = FcBlock(width, middle, config)
        self.dense = nn.Linear(middle, width)
        self.norm = _batch_norm(width, config)

    def forward(self, x_BW: Tensor) -> Tensor:
        return self.norm(self.dense(self.narrow(x_BW)))


class AverageBlock(nn.Module):
    """The paper's Figure 3: a bottleneck averaged with the identity, then LeakyReLU: (B, W) -> (B, W)."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.residual = Bottleneck(width, config)
        self.activation = nn.LeakyReLU(config.leaky_slope)

    def forward(self, x_BW: Tensor) -> Tensor:
        return self.activation((x_BW + self.residual(x_BW)) / 2)


class MergeAndRunBlock(nn.Module):
    """Zhao et al.'s mapping of two lines: each line's residual branch plus the mean of both lines, then LeakyReLU:
    two lines and their mean, each (B, W) -> two of (B, W)."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.upper = Bottleneck(width, config)
        self.lower = Bottleneck(width, config)
        self.activation = nn.LeakyReLU(config.leaky_slope)

    def forward(self, upper_BW: Tensor, lower_BW: Tensor, mean_BW: Tensor) -> tuple[Tensor, Tensor]:
        return self.activation(self.upper(upper_BW) + mean_BW), self.activation(self.lower(lower_BW) + mean_BW)


class MergeAndRun(nn.Module):
    """Merge-and-run blocks in a row; both lines start from one vector and end in their mean: (B, W) -> (B, W)."""

    def __init__(self, blocks: int, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MergeAndRunBlock(width, config) for _ in range(blocks))

    def forward(self, x_BW: Tensor) -> Tensor:
        upper_BW = lower_BW = mean_BW = x_BW
        for block in self.blocks:
            upper_BW, lower_BW = block(upper_BW, lower_BW, mean_BW)
            mean_BW = (upper_BW + lower_BW) / 2
        return mean_BW


class DMRNet(nn.Module):
    """Per input an fc_block and merge-and-run blocks; concatenated, more of these blocks, an fc_block back to the
    width of one branch, and the Dense that gives the logits."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        joint = len(config.inputs) * config.width
        self.scales = nn.ModuleList(Scaling(config.scaling, width) for _, width in config.inputs)
        self.branches = nn.ModuleList(
            nn.Sequential(FcBlock(width, config.width, config), _blocks(config.input_blocks, config.width, config))
            for _, width in config.inputs
        )
        self.joint = _blocks(config.joint_blocks, joint, config)
        self.last = FcBlock(joint, config.width, config)
        self.classify = nn.Linear(config.width, config.labels)

    def forward(self, *inputs: Tensor) -> Tensor:
        scaled = [scale(x_BF) for scale, x_BF in zip(self.scales, inputs, strict=True)]
        x = torch.cat([branch(x_BF) for branch, x_BF in zip(self.branches, scaled, strict=True)], dim=1)
        return self.classify(self.last(self.joint(x)))


def build(config: ModelConfig) -> nn.Module:
    """The model that `config` describes, with fresh weights from torch's global generator."""
    return DMRNet(config) if config.name == "dmrnet" else RecurrentNet(config)


def scalings(model: nn.Module) -> list[Scaling]:
    """The model's input scalings, in the order of its inputs."""
    return [module for module in model.modules() if isinstance(module, Scaling)]


def set_prior(model: nn.Module, log_odds_L: Tensor) -> None:
    """Start the logits of a fresh model from each label's log odds among the training videos."""
    with torch.no_grad():
        model.get_parameter("classify.bias").copy_(log_odds_L)


def set_he(model: nn.Module) -> None:
    """Start the output weights of a fresh model as He et al. 2015 (arXiv:1502.01852), from torch's global generator."""
    nn.init.kaiming_uniform_(model.get_parameter("classify.weight"), nonlinearity="relu")


def recurrent_width(config: ModelConfig) -> int:
    """D: what the recurrent layer of one branch gives."""
    return config.hidden * (2 if config.name == "bilstm" else 1)


def _blocks(count: int, width: int, config: ModelConfig) -> nn.Module:
    if config.form == "run":
        return MergeAndRun(count, width, config)
    return nn.Sequential(*(AverageBlock(width, config) for _ in range(count)))


def _batch_norm(width: int, config: ModelConfig) -> nn.BatchNorm1d:
    return nn.BatchNorm1d(width, eps=config.bn_eps, momentum=config.bn_momentum)
