"""The models by name. A model is one file, train/models/NAME.py, that has a `SPEC`; nothing else names it.

What its modules add to the exported graph stands beside their `forward`: a module with a method
`trace(tracer, name, inputs)`, see `Tracer`, is exported operator by operator. Without one the model is exported as
PyTorch's own exporter does it, in fp32 alone.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol

from scorer.errors import ModelError, UsageError
from train import models
from train.config import ModelConfig, Recipe, fields_of, parse_input, parse_object

if TYPE_CHECKING:
    from torch import nn

_FIRST = ("dmrnet", "lstm", "bilstm")
COMMON = ("labels", "scaling", "dropout", "leaky_slope", "bn_eps", "bn_momentum")
"""Settings that all models of the report read."""


@dataclass(frozen=True)
class ModelSpec:
    """A model.

    build: the network of a configuration, fresh weights from torch's global generator; its Dense that gives the logits
    is called `classify`. settings: the fields of its configuration that it reads. published: as its source describes
    it. recipe: how `train` trains it. A model with settings of its own subclasses ModelConfig.
    """

    build: Callable[[Any], nn.Module]
    settings: tuple[str, ...]
    published: ModelConfig
    recipe: Recipe


class Tracer(Protocol):
    """Collects the operators of a graph by name. Each method adds one, or more, and gives the name of its result.

    A module's method `trace(tracer, name, inputs)` does with names of results what its `forward` does with tensors:
    `name` is the module's own ("" or "branches.0.dense"), which names of operators start with.
    """

    def call(self, module: nn.Module, name: str, inputs: list[str]) -> str:
        """All of a module."""

    def chain(self, module: nn.Module, name: str, parts: Sequence[str], x: str) -> str:
        """The children of `module` that are called `parts`, each of what the one before gives."""

    def width(self, name: str) -> int:
        """How wide a result is."""

    def unary(self, name: str, kind: str, x: str, **values: float) -> str:
        """tanh, leaky_relu (slope), dropout, normalise (eps)."""

    def scale(self, name: str, x: str, scale: Any, shift: Any = 0.0) -> str:
        """x * scale + shift, each a number or an array (width,)."""

    def add_up(self, name: str, a: str, b: str) -> str:
        """a + b."""

    def concat(self, name: str, inputs: list[str]) -> str:
        """Side by side."""

    def lstm(self, name: str, x: str, gates: Mapping[str, Any], steps: int, cell: Literal["tanh", "relu"]) -> str:
        """The last hidden state of each direction, from a zero state over `steps` pieces of x.

        gates: w (directions, 4H, width of a piece), r (directions, 4H, H), b (directions, 4H), in PyTorch's order.
        """


def join(name: str, part: str) -> str:
    """The name of a module's part: `join("branches.0", "dense")` is "branches.0.dense"."""
    return f"{name}.{part}" if name else part


def names() -> tuple[str, ...]:
    """Every model's name, those of the report first. Loads none of them."""
    found = (module.name for module in pkgutil.iter_modules(models.__path__))
    return tuple(sorted(found, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)))


def spec(name: str) -> ModelSpec:
    """The model called `name`; loads torch. Raises UsageError."""
    if name not in names():
        raise UsageError(f"there is no model {name!r}", remedy=f"one of {', '.join(names())}")
    found: ModelSpec = import_module(f"train.models.{name}").SPEC
    return found


def build(config: ModelConfig) -> nn.Module:
    """The network that `config` describes, with fresh weights from torch's global generator."""
    return spec(config.name).build(config)


def config_from_json(text: str) -> ModelConfig:
    """The reverse of ModelConfig.to_json. Raises ModelError for anything that is not a model configuration."""
    try:
        values = parse_object(text)
        kind = type(spec(values["name"]).published)
        values = fields_of(kind, values)
        values["inputs"] = tuple(parse_input(name, width) for name, width in values["inputs"])
        return kind(**values)
    except (KeyError, TypeError, ValueError, UsageError) as error:
        raise ModelError(f"not a model configuration: {error}") from error
