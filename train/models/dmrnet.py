"""The report's DMRNet: merge-and-run blocks on each input, and more of them on all together.

The `average` form is the report's, the `run` form that of Zhao et al. 2017, "Deep Convolutional Neural Networks with
Merge-and-Run Mappings" (arXiv:1611.07718).

Shape suffixes: B videos in the batch, F width of an input feature, W width of a block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from train.config import DISTILLATION, ModelConfig
from train.layers import Scaling, batch_norm
from train.registry import COMMON, ModelSpec, Tracer, join


class FcBlock(nn.Module):
    """The report's fc_block: Dense, BatchNorm, LeakyReLU, Dropout."""

    def __init__(self, width: int, units: int, config: ModelConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, units)
        self.norm = batch_norm(units, config)
        self.activation = nn.LeakyReLU(config.leaky_slope)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.activation(self.norm(self.dense(x))))

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        return tracer.chain(self, name, ("dense", "norm", "activation", "dropout"), inputs[0])


class Bottleneck(nn.Module):
    """A residual branch: an fc_block down to W / bottleneck, then Dense and BatchNorm back to W: (B, W) -> (B, W)."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        middle = max(1, width // config.bottleneck)
        self.narrow = FcBlock(width, middle, config)
        self.dense = nn.Linear(middle, width)
        self.norm = batch_norm(width, config)

    def forward(self, x_BW: Tensor) -> Tensor:
        return self.norm(self.dense(self.narrow(x_BW)))

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        return tracer.chain(self, name, ("narrow", "dense", "norm"), inputs[0])


class AverageBlock(nn.Module):
    """The report's Figure 3: a bottleneck averaged with the identity, then LeakyReLU: (B, W) -> (B, W)."""

    def __init__(self, width: int, config: ModelConfig) -> None:
        super().__init__()
        self.residual = Bottleneck(width, config)
        self.activation = nn.LeakyReLU(config.leaky_slope)

    def forward(self, x_BW: Tensor) -> Tensor:
        return self.activation((x_BW + self.residual(x_BW)) / 2)

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        total = tracer.add_up(join(name, "add"), inputs[0], tracer.chain(self, name, ("residual",), inputs[0]))
        return tracer.chain(self, name, ("activation",), tracer.scale(join(name, "half"), total, 0.5))


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

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        lines = [inputs[0], inputs[0]]
        for index, block in self.blocks.named_children():
            part = join(name, f"blocks.{index}")
            lines = self._trace_block(tracer, block, part, lines, _trace_mean(tracer, part, lines))
        return _trace_mean(tracer, name, lines)

    def _trace_block(self, tracer: Tracer, block: nn.Module, name: str, lines: list[str], mean: str) -> list[str]:
        results = []
        for line, x in zip(("upper", "lower"), lines, strict=True):
            total = tracer.add_up(f"{name}.{line}.add", tracer.chain(block, name, (line,), x), mean)
            results.append(tracer.call(block.get_submodule("activation"), f"{name}.{line}.activation", [total]))
        return results


def _trace_mean(tracer: Tracer, name: str, lines: list[str]) -> str:
    return tracer.scale(join(name, "mean"), tracer.add_up(join(name, "sum"), *lines), 0.5)


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

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        branches = []
        for i, (scale, branch, x) in enumerate(zip(self.scales, self.branches, inputs, strict=True)):
            scaled = tracer.call(scale, join(name, f"scales.{i}"), [x])
            branches.append(tracer.call(branch, join(name, f"branches.{i}"), [scaled]))
        return tracer.chain(self, name, ("joint", "last", "classify"), tracer.concat(join(name, "concat"), branches))


def _blocks(count: int, width: int, config: ModelConfig) -> nn.Module:
    if config.form == "run":
        return MergeAndRun(count, width, config)
    return nn.Sequential(*(AverageBlock(width, config) for _ in range(count)))


_PUBLISHED = ModelConfig("dmrnet")
SPEC = ModelSpec(
    build=DMRNet,
    settings=(*COMMON, "width", "input_blocks", "joint_blocks", "bottleneck", "form"),
    published=_PUBLISHED,
    recipe=(
        replace(_PUBLISHED, form="run", width=1792, dropout=0.1, scaling="fisher"),
        replace(DISTILLATION, epochs=40, lr=1.5e-3),
    ),
)
