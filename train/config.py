"""What a model is and how it is trained, as plain dataclasses that go to JSON and back.

`PAPER` holds the models as the paper (Akopyan and Khashba, 2017, arXiv:1706.04488) describes them, `DEFAULTS` the
recipes that `train` uses: the same three models with what was found to train them best.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from scorer.errors import ModelError, UsageError

MODELS = ("dmrnet", "lstm", "bilstm")
YOUTUBE_8M = (("mean_rgb", 1024), ("mean_audio", 128))


@dataclass(frozen=True)
class ModelConfig:
    """One of the three models. Raises UsageError for values that cannot be."""

    name: Literal["dmrnet", "lstm", "bilstm"]
    """Which of the three models."""
    inputs: tuple[tuple[str, int], ...] = YOUTUBE_8M
    """(TFRecord feature, width in floats), in the order of forward's arguments; one branch each."""
    labels: int = 3862
    """Number of labels (logits)."""
    scaling: Literal["raw", "l2", "standard", "fisher"] = "raw"
    """Inputs as they are, each vector scaled to a root mean square of 1, each feature to mean 0 and deviation 1, or
    each feature weighted by how well it tells labels apart and then each vector scaled."""
    embedding: int = 1024
    """LSTM, BiLSTM: units of each branch's Dense, before it is cut into `steps`."""
    hidden: int = 1024
    """LSTM, BiLSTM: units of the recurrent layer, per direction."""
    head: int = 4096
    """LSTM, BiLSTM: units of the Dense after concatenation."""
    steps: int = 1
    """LSTM, BiLSTM: time steps that the embedding is cut into, each embedding / steps wide."""
    cell: Literal["tanh", "relu"] = "tanh"
    """LSTM, BiLSTM: activation in the cell; the paper's equations say tanh, its authors' LSTM ran with relu."""
    cell_dropout: float = 0.3
    """LSTM, BiLSTM: dropout probability after the recurrent layer."""
    width: int = 1024
    """DMRNet: units of each input's branch; the joint part is as wide as all branches together."""
    input_blocks: int = 1
    """DMRNet: merge-and-run blocks of each input's branch."""
    joint_blocks: int = 1
    """DMRNet: merge-and-run blocks after concatenation."""
    bottleneck: int = 4
    """DMRNet: how many times narrower a residual branch is in its middle."""
    form: Literal["average", "run"] = "average"
    """DMRNet: the paper's averaging block, or Zhao et al.'s merge-and-run mapping."""
    dropout: float = 0.2
    """Dropout probability of the head (LSTM, BiLSTM) or of every fc_block (DMRNet)."""
    leaky_slope: float = 0.3
    """LeakyReLU's slope below zero; Keras' default, which the paper ran with (PyTorch's is 0.01)."""
    bn_eps: float = 1e-3
    """Added to BatchNorm's variance; Keras' default (PyTorch's is 1e-5)."""
    bn_momentum: float = 0.1
    """Weight of the newest batch in BatchNorm's running statistics; PyTorch's default. Keras' 0.99 is 0.01 here."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_ranges(self)
        if not self.inputs:
            raise UsageError("a model needs at least one input")
        if len({name for name, _ in self.inputs}) < len(self.inputs):
            raise UsageError("two inputs have the same name", remedy="name each feature once")
        for name in ("labels", "embedding", "hidden", "head", "steps", "width", "bottleneck"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", remedy="it must be at least 1")
        if self.embedding % self.steps:
            raise UsageError(f"an embedding of {self.embedding} does not cut into {self.steps} equal steps")

    def to_json(self) -> str:
        """The configuration as one line of JSON with sorted keys: equal configurations give equal text."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> ModelConfig:
        """The reverse of to_json. Raises ModelError for anything that is not a model configuration."""
        try:
            values = _known_fields(ModelConfig, json.loads(text))
            values["inputs"] = tuple(_input(name, width) for name, width in values["inputs"])
            return ModelConfig(**values)
        except (KeyError, TypeError, ValueError, UsageError) as error:
            raise ModelError(f"not a model configuration: {error}") from error


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Raises UsageError for values that cannot be."""

    loss: Literal["listwise", "softmax", "bce"] = "listwise"
    """The paper's cross-entropy of normalised sigmoids, softmax cross-entropy, or binary cross-entropy."""
    bias: Literal["prior", "zero"] = "prior"
    """The output bias before the first step: each label's log odds among the training videos, or 0. From 0 every
    sigmoid starts at a half and the listwise loss saturates the frequent labels before the others have moved."""
    weights: Literal["torch", "he"] = "torch"
    """The output weights before the first step: PyTorch's own start, or He et al. 2015's, which is 2.4 times wider."""
    epochs: int = 15
    """Passes over the training videos."""
    batch: int = 4096
    """Videos a step, at most, over all processes: an epoch is cut into equal batches no larger than this."""
    lr: float = 1e-3
    """Adam's peak learning rate."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What follows the warm-up: the peak rate, or half a cosine down to zero at the last step."""
    warmup: float = 0.0
    """Fraction of all steps over which the rate rises linearly to its peak."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, per unit of learning rate."""
    soft: bool = False
    """Learn the teacher's soft labels (train/distillation/), at points around the videos, instead of the videos' own
    labels. Of more than 45,000 videos there are none, and networks learn better from their own labels."""
    mixup: float = 0.0
    """Alpha of mixup's Beta(alpha, alpha), drawn for each video where it learns its own labels; 0 mixes nothing."""
    ema: float = 0.0
    """Decay per step of the weight average that is evaluated and saved; 0 keeps no average."""
    seed: int = 0
    """Seed of initial weights, order, dropout and mixup."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of matrix products: bf16 autocast, none, or bf16 where the device is fast at it."""
    compile: bool = False
    """Run torch.compile on the model: worth its minute of compilation for long runs on a GPU."""

    def __post_init__(self) -> None:
        _check_choices(self)
        _check_ranges(self)
        if self.epochs < 1 or self.batch < 2:
            raise UsageError("epochs must be at least 1 and a batch at least 2 videos (BatchNorm needs two)")
        if not (self.lr > 0 and 0 <= self.warmup < 1 and 0 <= self.ema < 1 and self.mixup >= 0):
            raise UsageError("lr must be positive, warmup and ema in [0, 1), mixup not negative")

    def to_json(self) -> str:
        """The configuration as one line of JSON with sorted keys."""
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> TrainConfig:
        """The reverse of to_json. Raises ModelError for anything that is not a training configuration."""
        try:
            return TrainConfig(**_known_fields(TrainConfig, json.loads(text)))
        except (TypeError, ValueError, UsageError) as error:
            raise ModelError(f"not a training configuration: {error}") from error


def _known_fields(kind: type, values: Any) -> dict[str, Any]:
    """`values`, if it is an object with fields of `kind`, of their types. Raises TypeError, ValueError."""
    if not isinstance(values, dict):
        raise TypeError("not an object")
    known = {field.name: str(field.type) for field in fields(kind)}
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise ValueError(f"unknown fields {', '.join(unknown)}")
    for name, value in values.items():
        if type(value) not in _TYPES.get(known[name], (type(value),)):
            raise TypeError(f"{name} is {value!r}, not of type {known[name]}")
    return values


_TYPES = {"int": (int,), "float": (float, int), "bool": (bool,)}
"""What JSON may hold for each annotation; the other ones are checked by their values."""


def _input(name: Any, width: Any) -> tuple[str, int]:
    if type(name) is not str or type(width) is not int or width < 1:
        raise TypeError(f"the input {name!r} of width {width!r} cannot be")
    return name, width


_CHOICES = {
    "name": MODELS,
    "scaling": ("raw", "l2", "standard", "fisher"),
    "cell": ("tanh", "relu"),
    "form": ("average", "run"),
    "loss": ("listwise", "softmax", "bce"),
    "bias": ("prior", "zero"),
    "weights": ("torch", "he"),
    "schedule": ("constant", "cosine"),
    "precision": ("auto", "fp32", "bf16"),
}


def _check_choices(config: ModelConfig | TrainConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in _CHOICES and value not in _CHOICES[field.name]:
            raise UsageError(f"{field.name} is {value!r}", remedy=f"choose from {', '.join(_CHOICES[field.name])}")


def _is_dropout(value: float) -> bool:
    """Dropout in steps of 1/256 has no scale for what it keeps near 1."""
    return 0 <= value < 0.99


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "dropout": (_is_dropout, "at least 0 and less than 0.99"),
    "cell_dropout": (_is_dropout, "at least 0 and less than 0.99"),
    "input_blocks": (lambda value: value >= 0, "at least 0"),
    "joint_blocks": (lambda value: value >= 0, "at least 0"),
    "leaky_slope": (math.isfinite, "a finite number"),
    "bn_eps": (lambda value: 0 < value < math.inf, "positive"),
    "bn_momentum": (lambda value: 0 < value <= 1, "positive and at most 1"),
    "lr": (math.isfinite, "a finite number"),
    "mixup": (math.isfinite, "a finite number"),
    "weight_decay": (lambda value: 0 <= value < math.inf, "at least 0"),
    "seed": (lambda value: 0 <= value < 2**63, "at least 0 and less than 2**63"),
}


def _check_ranges(config: ModelConfig | TrainConfig) -> None:
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in _RANGES and not _RANGES[field.name][0](value):
            raise UsageError(f"{field.name} is {value}", remedy=f"it must be {_RANGES[field.name][1]}")


PAPER = {
    "dmrnet": ModelConfig("dmrnet"),
    "lstm": ModelConfig("lstm", embedding=512),
    "bilstm": ModelConfig("bilstm"),
}

_DISTILLATION = TrainConfig(weights="he", batch=512, schedule="cosine", warmup=0.1, soft=True, mixup=0.4)
"""What the recipes have in common. The rate falls to 0, so a weight average would change nothing."""
_RECURRENT = replace(_DISTILLATION, epochs=20, lr=1.2e-3, weight_decay=0.3)

DEFAULTS = {
    "dmrnet": (
        replace(PAPER["dmrnet"], form="run", width=1792, dropout=0.1, scaling="fisher"),
        replace(_DISTILLATION, epochs=40, lr=1.5e-3),
    ),
    "lstm": (replace(PAPER["lstm"], scaling="fisher", cell_dropout=0.1, dropout=0.1), _RECURRENT),
    "bilstm": (replace(PAPER["bilstm"], scaling="fisher", cell_dropout=0.1, dropout=0.1), _RECURRENT),
}
