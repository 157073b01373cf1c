"""Approximate versions of a graph: int8 for CPUs, fp16 for GPUs."""

from __future__ import annotations

from onnx import ModelProto

from export.ops import Graph
from export.videos import Features
from scorer.errors import ModelError


def quantise(graph: Graph, features: Features) -> Graph:
    raise ModelError("int8 is not written yet")


def to_half(proto: ModelProto) -> ModelProto:
    raise ModelError("fp16 is not written yet")
