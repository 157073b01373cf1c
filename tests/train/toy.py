"""A fourth model, as whoever adds one writes it: this file, as train/models/toy.py, is all that it takes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from train.config import DISTILLATION, WIDTH, ModelConfig, setting
from train.layers import Scaling
from train.registry import ModelSpec, Tracer


@dataclass(frozen=True)
class ToyConfig(ModelConfig):
    """With a setting of its own."""

    rank: int = setting(32, "width between features and logits", unit="units", range=WIDTH)


class Toy(nn.Module):
    """Logistic regression of low rank: (B, F) an input -> logits (B, L)."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.scales = nn.ModuleList(Scaling(config.scaling, width) for _, width in config.inputs)
        self.project = nn.Linear(sum(width for _, width in config.inputs), config.rank)
        self.classify = nn.Linear(config.rank, config.labels)

    def forward(self, *inputs: Tensor) -> Tensor:
        x = torch.cat([scale(x_BF) for scale, x_BF in zip(self.scales, inputs, strict=True)], dim=1)
        return self.classify(torch.tanh(self.project(x)))

    def trace(self, tracer: Tracer, name: str, inputs: list[str]) -> str:
        """What `forward` does, for export."""
        pairs: Any = zip(self.scales, inputs, strict=True)
        scaled = [tracer.call(scale, f"scales.{i}", [x]) for i, (scale, x) in enumerate(pairs)]
        x = tracer.call(self.project, "project", [tracer.concat("concat", scaled)])
        return tracer.call(self.classify, "classify", [tracer.unary("tanh", "tanh", x)])


_PUBLISHED = ToyConfig("toy")
SPEC = ModelSpec(
    build=Toy,
    settings=("labels", "scaling", "rank"),
    published=_PUBLISHED,
    recipe=(replace(_PUBLISHED, scaling="l2"), replace(DISTILLATION, epochs=2, batch=16)),
)
