"""What models have in common: the scaling of an input, BatchNorm, and how a fresh network starts.

Shape suffixes: B videos in the batch, F width of an input feature, L labels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.config import ModelConfig
from train.registry import Tracer, join

EPSILON = 1e-6
"""Added to a vector's mean square before the root, for vectors of zeros; ONNX Runtime's fusions lose one of 1e-12."""


class Scaling(nn.Module):
    """One input's scaling: (B, F) -> (B, F).

    "raw" changes nothing. "l2" divides each vector by its root mean square: the L2-normalised vector times sqrt(F),
    so that what enters the first Dense is of order 1 whatever the width. "standard" subtracts the training videos'
    mean per feature and divides by their deviation. "fisher" multiplies each feature by the root of its Fisher ratio
    (measures.py), then does what "l2" does: YouTube-8M's features are whitened, so that in their raw form the many
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

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        """ "l2": x / sqrt(mean(x * x) + eps) is sqrt(F) * x / sqrt(sum(x * x) + F * eps)."""
        (x,) = inputs
        if self.scaling == "raw":
            return x
        if self.scaling == "standard":
            scale = 1 / self.std.double()
            return tracer.scale(name, x, scale, -self.mean.double() * scale)
        if self.scaling == "fisher":
            x = tracer.scale(join(name, "weight"), x, self.weight)
        width = tracer.width(x)
        return tracer.scale(name, tracer.unary(join(name, "unit"), "normalise", x, eps=EPSILON * width), width**0.5)


def scalings(model: nn.Module) -> list[Scaling]:
    """The model's input scalings, in the order of its inputs."""
    return [module for module in model.modules() if isinstance(module, Scaling)]


def count_parameters(model: nn.Module) -> int:
    """Numbers in all weights, as they are counted wherever they are shown; what is measured on the data is none."""
    return sum(parameter.numel() for parameter in model.parameters())


def set_prior(model: nn.Module, log_odds_L: Tensor) -> None:
    """Start the logits of a fresh model from each label's log odds among the training videos."""
    with torch.no_grad():
        model.get_parameter("classify.bias").copy_(log_odds_L)


def set_he(model: nn.Module) -> None:
    """Start the output weights of a fresh model as He et al. 2015 (arXiv:1502.01852), from torch's global generator."""
    nn.init.kaiming_uniform_(model.get_parameter("classify.weight"), nonlinearity="relu")


def batch_norm(width: int, config: ModelConfig) -> nn.BatchNorm1d:
    """BatchNorm as the configuration has it."""
    return nn.BatchNorm1d(width, eps=config.bn_eps, momentum=config.bn_momentum)
