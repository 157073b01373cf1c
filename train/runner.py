"""The runs that the command `train` asks for, one model after the other on the same videos."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from scorer.errors import DeviceError, OutputError, ResumeError, TrainingError, printable
from scorer.inputs.discover import find_shards
from scorer.outputs.lock import owned
from scorer.system.terminal import print_stderr
from train import checkpoint, curves
from train.config import ModelConfig, Recipe, TrainConfig
from train.data import Part, Videos, load
from train.devices import choose_device, use_all_cores
from train.distillation.soft_labels import MOST_VIDEOS
from train.distributed import World, joined
from train.evaluate import Record
from train.overrides import differences, overridden
from train.registry import config_from_json, spec
from train.state import CURVES
from train.training import Data, Stopped, Training
from train.view import print_table, view

_REMEDY = "resume with --resume and the same settings, or start anew with --restart"
_TELL_SECONDS = (2.0, 15.0)  # before the first line about a wait that may take minutes, and between lines


def train_all(
    options: argparse.Namespace, overrides: dict[str, Any], stop: Callable[[], bool], begun: list[str]
) -> int:
    """Train the models one after the other on the same videos, noting each in `begun`; print them side by side."""
    use_all_cores()
    device = choose_device(options.device, int(os.environ.get("LOCAL_RANK", "0")))
    shared: dict[tuple[Any, ...], Data] = {}
    rows: list[tuple[str, Record]] = []
    with joined(device.type == "cuda") as world:
        recipes = {name: _recipe(options, name, overrides) for name in options.model}
        for name, (recipe, saved) in recipes.items():
            key = (recipe[0].inputs, recipe[0].labels)
            shared[key] = shared.get(key) or _load(options, recipe[0], world, stop)
            if recipe[1].soft:
                _compute_soft_labels(options, shared[key], recipe, world, stop)
            begun.append(name)
            with _enough_memory(name):
                rows.append((name, _train_one(options, recipe, saved, shared[key], device, world, stop)))
        if world.first:
            print_table(rows)
    return 0


@contextmanager
def _enough_memory(name: str) -> Iterator[None]:
    """Turn what PyTorch raises when memory runs out, on a GPU or a CPU, into a DeviceError."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        remedy = "use a smaller batch, e.g. --set batch=1024, or a smaller model"
        raise DeviceError(f"{name}: {str(error).splitlines()[0]}", remedy=remedy) from None


def _train_one(
    options: argparse.Namespace,
    recipe: Recipe,
    resumed: bool,
    data: Data,
    device: Any,
    world: World,
    stop: Callable[[], bool],
) -> Record:
    """Train one model in its folder; its best epoch's measures."""
    model, config = recipe
    folder = _make(options.runs / model.name)
    lock = owned(folder / ".lock", str(folder)) if world.first else nullcontext()
    with lock, view(model.name, config.epochs, quiet=not world.first) as show:
        training = Training(model, config, data, device, world)
        if resumed:
            training.state.restore(*checkpoint.read(folder / checkpoint.LAST))
        show.log(_describe(training, data))
        try:
            training.run(folder, show, stop)
        except Stopped:
            raise Stopped(f"{folder} is saved") from None
        finally:
            if world.first and training.state.progress.log:
                curves.draw(folder / CURVES, model.name, training.state.progress.log)
    return training.state.best() | {"parameters": training.parameters, "seconds": training.state.progress.seconds}


def _describe(training: Training, data: Data) -> str:
    precision = "bf16" if training.bf16 else "fp32"
    plan, progress = training.plan, training.state.progress
    text = (
        f"{training.parameters:,} parameters, {len(data.train):,} training videos in {plan.steps:,} batches of "
        f"{plan.size:,}, {len(data.valid):,} to validate, {training.device}, {precision}"
    )
    if training.config.soft and training.soft is None:
        text += ", too many videos for soft labels"
    return f"{text}, going on after epoch {progress.epoch}, step {progress.step}" if progress.seconds else text


def _recipe(options: argparse.Namespace, name: str, overrides: dict[str, Any]) -> tuple[Recipe, bool]:
    """The model's recipe, and whether the run in its folder is resumed.

    Raises ResumeError when an unfinished run is in the way or was made with another recipe.
    """
    path = options.runs / name / checkpoint.LAST
    default = overridden(spec(name).recipe, overrides)
    if options.restart or not path.exists():
        return default, False
    metadata = checkpoint.metadata(path)
    saved = config_from_json(metadata.get("config", "")), TrainConfig.from_json(metadata.get("train", ""))
    if options.resume:
        wanted = overridden(saved, overrides)
        difference = ", ".join(differences(saved[0], wanted[0]) + differences(saved[1], wanted[1]))
        if difference:
            raise ResumeError(f"{path.parent} was begun with other settings: {difference}", remedy=_REMEDY)
        return saved, True
    if not checkpoint.finished(metadata):
        raise ResumeError(f"{path.parent} holds an unfinished run", remedy=_REMEDY)
    return default, False


def _load(options: argparse.Namespace, model: ModelConfig, world: World, stop: Callable[[], bool]) -> Data:
    """Decode the shards; without --valid, hold out a part of the training videos."""

    def check() -> None:
        if stop():
            raise Stopped("stopped while reading")

    def videos(shards: list[str], part: Part) -> Videos:
        return load(find_shards(shards), model.inputs, model.labels, part=part, cache=options.cache, check=check)

    with world.in_turn() if options.cache else nullcontext():
        if options.valid is None:
            parts = videos(options.data, "kept"), videos(options.data, "held")
        else:
            parts = videos(options.data, "all"), videos(options.valid, "all")
    data = Data(*parts)
    if not len(data.valid):
        raise TrainingError("too few videos to hold some out", remedy="name shards with --valid")
    return data


def _compute_soft_labels(
    options: argparse.Namespace, data: Data, recipe: Recipe, world: World, stop: Callable[[], bool]
) -> None:
    """Find the soft labels before a model's turn begins: a stop meanwhile has nothing to save."""
    due = time.monotonic() + _TELL_SECONDS[0]

    def at(step: str) -> None:
        nonlocal due
        if stop():
            raise Stopped("stopped while finding the soft labels")
        if world.first and time.monotonic() >= due:
            _log(f"train: finding soft labels of {len(data.train):,} videos, once: {step}")
            due = time.monotonic() + _TELL_SECONDS[1]

    if not 0 < len(data.train) <= MOST_VIDEOS:
        return
    data.soft_folder = _make(options.cache or options.runs)
    with world.in_turn():
        data.soft_labels(recipe[0].labels, at)


def _make(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}", remedy="choose another with --runs") from None
    return folder


def _log(line: str) -> None:
    print_stderr(printable(line))
