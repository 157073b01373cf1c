"""Weights and training state as safetensors files, written atomically; nothing here can run code when it is read.

A run's folder holds two of them:

    best.safetensors   the weights (averaged ones where the run averages) of the epoch with the best MAP@10. Metadata:
                       format "1", config (ModelConfig as JSON), train (TrainConfig as JSON), metrics (JSON), and
                       trained_on (JSON of train/facts.py) and sha256 (of the weights), which may be absent.
    last.safetensors   everything that --resume needs (train/state.py says what).

A file is written beside its place, flushed to the disk and renamed, so that a full disk, a kill or a power cut leaves
the previous one.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scorer.errors import Hint, ModelError
from scorer.inputs.file_kinds import KIND_BYTES, SAFETENSORS, kind_of
from train.config import ModelConfig, TrainConfig, parse_object
from train.facts import TrainedOn
from train.files import replace_file
from train.registry import build, config_from_json

FORMAT = "1"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass
class Checkpoint:
    """What best.safetensors holds: the model's configuration, its weights by name, its validation metrics, and what is
    known of the videos that it was trained on."""

    config: ModelConfig
    state: dict[str, Tensor]
    metrics: dict[str, float]
    trained_on: TrainedOn | None = None

    def model(self) -> nn.Module:
        """The model with these weights, in evaluation mode, on the CPU."""
        model = build(self.config)
        model.load_state_dict(self.state)
        return model.eval()


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a best.safetensors, its half-precision weights as float32.

    Raises ModelError when it is absent, damaged, of another format or model, or holds a weight that is not finite.
    """
    tensors, metadata = read(Path(path))
    if "progress" in metadata:
        raise ModelError(f"{path} is what a run resumes from, not a checkpoint", remedy=f"give the {BEST} beside it")
    config, facts, metrics = _about(Path(path), metadata)
    check_fits(Path(path), config, tensors)
    if metadata.get("sha256", found := digest(tensors)) != found:
        raise ModelError(f"{path}: the checkpoint is damaged: its weights have another sha256", remedy="train again")
    _check_finite(Path(path), tensors)
    state = {name: _widened(tensor) for name, tensor in tensors.items()}
    return Checkpoint(config, state, metrics, facts)


def _about(path: Path, metadata: Mapping[str, str]) -> tuple[ModelConfig, TrainedOn | None, dict[str, float]]:
    """Configuration, training videos and metrics out of a file's metadata. Raises ModelError."""
    try:
        facts = TrainedOn.from_json(metadata["trained_on"]) if "trained_on" in metadata else None
        return config_from_json(metadata.get("config", "")), facts, _metrics(metadata)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", remedy=error.remedy or "train again", hints=error.hints) from None


def save(path: Path, checkpoint: Checkpoint, train: TrainConfig) -> None:
    """Write a best.safetensors. Raises OutputError; what stood at `path` then stands there still."""
    config, state, metrics = checkpoint.config, checkpoint.state, checkpoint.metrics
    about = {"config": config.to_json(), "train": train.to_json(), "metrics": json.dumps(metrics)}
    if checkpoint.trained_on is not None:
        about["trained_on"] = checkpoint.trained_on.to_json()
    write(path, state, about | {"sha256": digest(state)})


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata as `path`, atomically. Raises OutputError."""
    arrays = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda part: _write_part(part, arrays, {"format": FORMAT, **metadata}))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file that `write` made. Raises ModelError."""
    with _opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def metadata(path: Path) -> dict[str, str]:
    """The metadata alone, without reading the tensors. Raises ModelError."""
    with _opened(path) as file:
        return dict(file.metadata())


def finished(metadata: Mapping[str, str]) -> bool:
    """Whether the run that a last.safetensors belongs to reached its last epoch."""
    try:
        return bool(json.loads(metadata["progress"])["epoch"] == json.loads(metadata["train"])["epochs"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ModelError("damaged training state", hints=(Hint.RESTART,)) from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    _check_kind(path)
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("format", "none")
            if found != FORMAT:
                reason = f"checkpoint of format {found}, this version reads {FORMAT}"
                raise ModelError(f"{path}: {reason}", remedy="train again")
            yield file
    except FileNotFoundError:
        raise ModelError(f"{path}: no such checkpoint", remedy="train first") from None
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: damaged checkpoint: {error}", remedy="train again", hints=(Hint.RESTART,)) from None


def _check_kind(path: Path) -> None:
    """Raise ModelError where `path` is a folder or another kind of file, and say which."""
    if path.is_dir():
        place = path / BEST if (path / BEST).exists() else f"the {BEST} of a run"
        raise ModelError(f"{path} is a folder, not a checkpoint", remedy=f"give {place}")
    try:
        if path.exists() and not path.is_file():
            raise ModelError(f"{path} is no regular file, so no checkpoint", remedy=f"give the {BEST} of a run")
        with path.open("rb") as file:
            head = file.read(KIND_BYTES)
    except OSError:
        return  # the reader says what is wrong
    kind = kind_of(head, f"give the {BEST} that `yt8m train` leaves in the folder of a run")
    if head and kind is not None and kind[0] != SAFETENSORS:
        raise ModelError(f"{path} is {kind[0]}, not a checkpoint", remedy=kind[1])


def check_fits(path: Path, config: ModelConfig, tensors: Mapping[str, Tensor]) -> None:
    """Raise ModelError unless `tensors` are the weights of the model that `config` describes: names, shapes, kinds."""
    with torch.device("meta"):
        model = build(config).state_dict()
    expected, found = ({name: _kind(tensor) for name, tensor in some.items()} for some in (model, tensors))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and tensor.dtype not in _FLOATS:
            reason = f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}, which is no type of weights"
            raise ModelError(reason, remedy="give weights in float32, float16 or bfloat16")
    if found != expected:
        wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise ModelError(f"{path}: weights do not fit the configuration, {wrong[0]} first", remedy="train again")


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype | None]:
    """Shape and type, None for that of floats, of which weights may have several."""
    return tensor.shape, None if tensor.is_floating_point() else tensor.dtype


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 of the tensors' names, types and bytes, whatever their order."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(f"{path}: {name} holds values that are not finite", remedy="train again at a lower rate")


def _widened(tensor: Tensor) -> Tensor:
    """Floats as the float32 that the model computes in: half precision would fail in the first product."""
    return tensor.float() if tensor.is_floating_point() else tensor


def _write_part(part: Path, arrays: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    save_file(dict(arrays), part, metadata)
    umask = os.umask(0)
    os.umask(umask)
    part.chmod(0o666 & ~umask)  # safetensors makes files that none but their owner can read


def _metrics(metadata: Mapping[str, str]) -> dict[str, float]:
    try:
        found = {name: float(value) for name, value in parse_object(metadata["metrics"]).items()}
        if not all(map(math.isfinite, found.values())):
            raise ValueError("a metric that is not finite")
    except (KeyError, ValueError, TypeError, OverflowError):
        raise ModelError("the metadata holds no metrics") from None
    return found
