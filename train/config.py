"""What a model is and how it is trained, as plain dataclasses that go to JSON and back.

Each field is a `setting`: its default, what it means, its unit and what it may be. The models themselves, and their
recipes, are in train/models/.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from scorer.errors import ModelError, UsageError

YOUTUBE_8M = (("mean_rgb", 1024), ("mean_audio", 128))

Range = tuple[Callable[[Any], bool], str]
"""Whether a value may be, and what may be, in words."""

_MOST = 1 << 20
_GREATEST = sys.float_info.max  # a whole number may be greater, and no float
WIDTH: Range = (lambda value: 1 <= value <= _MOST, f"at least 1 and at most {_MOST:,}")
BLOCKS: Range = (lambda value: 0 <= value <= 1000, "at least 0 and at most 1,000")
# Dropout in steps of 1/256 has no scale for what it keeps near 1.
DROPOUT: Range = (lambda value: 0 <= value < 0.99, "at least 0 and less than 0.99")
FINITE: Range = (lambda value: -_GREATEST <= value <= _GREATEST, "a finite number")
POSITIVE: Range = (lambda value: 0 < value <= _GREATEST, "positive")
NOT_NEGATIVE: Range = (lambda value: 0 <= value <= _GREATEST, "at least 0")
FRACTION: Range = (lambda value: 0 <= value < 1, "at least 0 and less than 1")


def setting(
    default: Any, meaning: str, *, unit: str = "", choices: tuple[str, ...] = (), range: Range | None = None
) -> Any:
    """A field of a configuration. `yt8m train --list-settings` prints what it means."""
    return field(default=default, metadata={"meaning": meaning, "unit": unit, "choices": choices, "range": range})


@dataclass(frozen=True)
class ModelConfig:
    """A model: which, and how wide. Each model reads some of the fields (its `settings`, train/registry.py).

    Raises UsageError for values that cannot be.
    """

    name: str
    inputs: tuple[tuple[str, int], ...] = YOUTUBE_8M
    """(TFRecord feature, width in floats), in the order of forward's arguments; one branch each."""
    labels: int = setting(3862, "labels, so logits", unit="labels", range=WIDTH)
    scaling: Literal["raw", "l2", "standard", "fisher"] = setting(
        "raw",
        "inputs as they are, each vector scaled to a root mean square of 1, each feature to mean 0 and deviation 1, or "
        "each feature weighted by how well it tells labels apart and then each vector scaled",
        choices=("raw", "l2", "standard", "fisher"),
    )
    embedding: int = setting(
        1024, "width of each branch's Dense, before it is cut into `steps`", unit="units", range=WIDTH
    )
    hidden: int = setting(1024, "width of the recurrent layer, per direction", unit="units", range=WIDTH)
    head: int = setting(4096, "width of the Dense after concatenation", unit="units", range=WIDTH)
    steps: int = setting(
        1, "time steps that the embedding is cut into, each embedding / steps wide", unit="steps", range=WIDTH
    )
    cell: Literal["tanh", "relu"] = setting(
        "tanh",
        "activation in the cell; the report's equations say tanh, its authors' LSTM ran with relu",
        choices=("tanh", "relu"),
    )
    cell_dropout: float = setting(0.3, "dropout after the recurrent layer", unit="probability", range=DROPOUT)
    width: int = setting(
        1024,
        "width of each input's branch; the joint part is as wide as all branches together",
        unit="units",
        range=WIDTH,
    )
    input_blocks: int = setting(1, "merge-and-run blocks of each input's branch", unit="blocks", range=BLOCKS)
    joint_blocks: int = setting(1, "merge-and-run blocks after concatenation", unit="blocks", range=BLOCKS)
    bottleneck: int = setting(
        4, "how many times narrower a residual branch is in its middle", unit="times", range=WIDTH
    )
    form: Literal["average", "run"] = setting(
        "average", "the report's averaging block, or Zhao et al.'s merge-and-run mapping", choices=("average", "run")
    )
    dropout: float = setting(0.2, "dropout of the head or of every fc_block", unit="probability", range=DROPOUT)
    leaky_slope: float = setting(
        0.3, "LeakyReLU's slope below zero; Keras' default, which the report ran with (PyTorch's is 0.01)", range=FINITE
    )
    bn_eps: float = setting(1e-3, "added to BatchNorm's variance; Keras' default (PyTorch's is 1e-5)", range=POSITIVE)
    bn_momentum: float = setting(
        0.1,
        "weight of the newest batch in BatchNorm's running statistics; PyTorch's default (Keras' 0.99 is 0.01 here)",
        range=(lambda value: 0 < value <= 1, "positive and at most 1"),
    )

    def __post_init__(self) -> None:
        _check(self)
        if not self.inputs:
            raise UsageError("a model needs at least one input")
        if len({name for name, _ in self.inputs}) < len(self.inputs):
            raise UsageError("two inputs have the same name", remedy="name each feature once")
        for name, width in self.inputs:
            if not WIDTH[0](width):
                raise UsageError(f"the input {name} is {width} wide", remedy=f"it must be {WIDTH[1]}")
        if self.embedding % self.steps:
            raise UsageError(f"an embedding of {self.embedding} does not cut into {self.steps} equal steps")

    def to_json(self) -> str:
        """The configuration as one line of JSON with sorted keys: equal configurations give equal text."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Raises UsageError for values that cannot be."""

    loss: Literal["listwise", "softmax", "bce"] = setting(
        "listwise",
        "the report's cross-entropy of normalised sigmoids, softmax cross-entropy, or binary cross-entropy",
        choices=("listwise", "softmax", "bce"),
    )
    bias: Literal["prior", "zero"] = setting(
        "prior",
        "output bias before the first step: each label's log odds among the training videos, or 0, from where the "
        "listwise loss saturates the frequent labels before the others have moved",
        choices=("prior", "zero"),
    )
    weights: Literal["torch", "he"] = setting(
        "torch",
        "output weights before the first step: PyTorch's own start, or He et al. 2015's, 2.4 times wider",
        choices=("torch", "he"),
    )
    epochs: int = setting(
        15, "passes over the training videos", unit="epochs", range=(lambda value: value >= 1, "at least 1")
    )
    batch: int = setting(
        4096,
        "a step's videos, at most, over all processes: an epoch is cut into equal batches no larger than this",
        unit="videos",
        range=(lambda value: value >= 2, "at least 2 (BatchNorm needs two)"),
    )
    lr: float = setting(1e-3, "Adam's peak learning rate", range=POSITIVE)
    schedule: Literal["constant", "cosine"] = setting(
        "constant",
        "what follows the warm-up: the peak rate, or half a cosine down to zero at the last step",
        choices=("constant", "cosine"),
    )
    warmup: float = setting(
        0.0, "over which the rate rises linearly to its peak", unit="fraction of all steps", range=FRACTION
    )
    weight_decay: float = setting(
        0.0, "AdamW's decoupled weight decay", unit="per unit of learning rate", range=NOT_NEGATIVE
    )
    soft: bool = setting(
        False, "learn the teacher's soft labels at points around the videos instead of the videos' own labels"
    )
    mixup: float = setting(
        0.0,
        "alpha of mixup's Beta(alpha, alpha), drawn for each video where it learns its own labels; 0 mixes nothing",
        range=NOT_NEGATIVE,
    )
    ema: float = setting(
        0.0, "decay of the weight average that is evaluated and saved; 0: none", unit="per step", range=FRACTION
    )
    seed: int = setting(
        0,
        "of initial weights, order, dropout and mixup",
        range=(lambda value: 0 <= value < 2**63, "at least 0 and less than 2**63"),
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto",
        "of matrix products: autocast to bf16, to fp16 with losses scaled, none, or what the device is fast at",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: bool = setting(
        False,
        "run torch.compile, on one GPU with CUDA graphs: worth its minute of compilation for long runs there, "
        "above all at small batches",
    )

    def __post_init__(self) -> None:
        _check(self)

    def to_json(self) -> str:
        """The configuration as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> TrainConfig:
        """The reverse of to_json. Raises ModelError for anything that is not a training configuration."""
        try:
            return TrainConfig(**fields_of(TrainConfig, parse_object(text)))
        except (TypeError, ValueError, UsageError) as error:
            raise ModelError(f"not a training configuration: {error}") from error


Recipe = tuple[ModelConfig, TrainConfig]


def parse_object(text: str) -> dict[str, Any]:
    """A JSON object. Raises TypeError, ValueError."""
    try:
        values = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(values, dict):
        raise TypeError("not an object")
    return values


def fields_of(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """`values`, if all are fields of the dataclass `kind`, of their types. Raises TypeError, ValueError."""
    known = {field.name: str(field.type) for field in fields(kind)}
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)}")
    for name, value in values.items():
        if type(value) not in _TYPES.get(known[name], (type(value),)):
            raise TypeError(f"{name} is {value!r}, not of type {known[name]}")
    return values


_TYPES = {"int": (int,), "float": (float, int), "bool": (bool,), "str": (str,)}
"""What JSON may hold for each annotation; the other ones are checked by their values."""


def parse_input(name: Any, width: Any) -> tuple[str, int]:
    """An input as JSON has it. Raises TypeError, ValueError."""
    if type(name) is not str or type(width) is not int:
        raise TypeError(f"the input {name!r} of width {width!r} cannot be")
    name.encode()  # no feature has a name that UTF-8 cannot hold
    return name, width


def _check(config: ModelConfig | TrainConfig) -> None:
    for item in fields(config):
        value, about = getattr(config, item.name), item.metadata
        if about.get("choices") and value not in about["choices"]:
            raise UsageError(f"{item.name} is {value!r}", remedy=f"choose from {', '.join(about['choices'])}")
        if about.get("range") and not about["range"][0](value):
            raise UsageError(f"{item.name} is {value}", remedy=f"it must be {about['range'][1]}")


DISTILLATION = TrainConfig(weights="he", batch=512, schedule="cosine", warmup=0.1, soft=True, mixup=0.4)
"""The distillation recipe, from which the models' own start. The rate falls to 0, so a weight average would change
nothing."""
