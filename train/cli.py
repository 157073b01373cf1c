"""The command `train`. Nothing heavy is imported before the arguments are known to be good."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.errors import DeviceError, ResumeError, UsageError, Yt8mError
from train.config import DEFAULTS, MODELS, ModelConfig, TrainConfig

if TYPE_CHECKING:
    from train.distributed import World
    from train.loop import Data, Record, Training

SAMPLES = "samples/*.tfrecord"
Recipe = tuple[ModelConfig, TrainConfig]

_EPILOG = """\
examples:
  train                                                    the three models on the sample shards
  train --model bilstm --data 'shards/validate0[01]*.tfrecord' --valid 'shards/validate02*.tfrecord'
  train --model dmrnet --set width=512 form=average epochs=30
  train --model lstm --inputs mean_rgb:1024                without audio
  torchrun --nproc-per-node 8 -m train --model bilstm --data 'shards/*.tfrecord'

A run leaves in RUNS/MODEL/: config.json, best.safetensors (for export), last.safetensors (for --resume),
metrics.jsonl and curves.png. Ctrl-C saves and stops. A finished run is replaced by the next one, an unfinished one
only with --restart.

exit codes:
   0  done
   2  a wrong command line
   3  a shard is absent, unreadable or changed while it was read
   4  a shard is damaged
   5  a record is not what the model reads, or a label is outside the range
   6  a checkpoint is damaged
   7  a device or package is absent or failed
   8  the run's folder cannot be written
   9  an unfinished run is in the way, cannot be resumed with these settings, or is still running
  12  training cannot go on: no labels, too few videos, a loss that is not finite
 130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM; --resume goes on
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `train` with `argv` (the process's own arguments by default); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = _parser().parse_args(arguments)
    try:
        return _train(options, arguments)
    except Yt8mError as error:
        _tell(f"train: {error}")
        return error.exit_code
    except ModuleNotFoundError as error:
        _tell(f"train: {error.name} is not installed; pip install 'yt8m-edge[cpu,train]'")
        return DeviceError.exit_code
    except MemoryError:
        _tell("train: out of memory; use a smaller batch, e.g. --set batch=1024")
        return DeviceError.exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="train",
        description="Train DMRNet, LSTM and BiLSTM on labelled TFRecord shards of YouTube-8M video-level features.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=MODELS, help="which to train [all three]")
    data = parser.add_argument_group("data: files, quoted patterns, or folders")
    data.add_argument("--data", nargs="+", default=[SAMPLES], metavar="SHARD", help=f"to train on [{SAMPLES}]")
    data.add_argument(
        "--valid", nargs="+", metavar="SHARD", help="to validate on [a tenth of the videos, by their ids]"
    )
    data.add_argument("--inputs", nargs="+", type=_input, metavar="NAME:WIDTH", help="[mean_rgb:1024 mean_audio:128]")
    data.add_argument(
        "--cache", type=Path, metavar="DIR", help="keep the decoded videos there, for data larger than memory"
    )
    recipe = parser.add_argument_group("recipe [each model's own]")
    recipe.add_argument("--epochs", type=int, metavar="N", help="passes over the training videos")
    recipe.add_argument("--seed", type=int, metavar="N", help="of weights, order, dropout and mixup")
    recipe.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="any field of train/config.py")
    run = parser.add_argument_group("run")
    run.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the runs are kept [runs]")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [auto: CUDA where there is one]")
    either = run.add_mutually_exclusive_group()
    either.add_argument("--resume", action="store_true", help="go on where earlier runs stopped; finished ones stand")
    either.add_argument("--restart", action="store_true", help="start anew over unfinished runs")
    return parser


def _input(text: str) -> tuple[str, int]:
    name, _, width = text.rpartition(":")
    if not name or not width.isdecimal() or int(width) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME:WIDTH")
    return name, int(width)


def _train(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from scorer.inputs.discover import find_shards
    from scorer.system.signals import stop_on_signals

    overrides = _overrides(options)
    for name in options.model:
        _override(DEFAULTS[name], overrides)
    find_shards([*options.data, *(options.valid or [])])
    with stop_on_signals("train", "saving after the step in hand") as stop:
        from train.loop import Stopped

        begun: list[str] = []
        try:
            return _train_all(options, overrides, stop.is_set, begun)
        except Stopped as stopped:
            _tell(f"train: {stopped}; go on with: {_resume_command(options, arguments, begun)}")
            return stop.exit_code


def _train_all(
    options: argparse.Namespace, overrides: dict[str, Any], stop: Callable[[], bool], begun: list[str]
) -> int:
    """Train the models one after the other on the same videos, noting each in `begun`; print them side by side."""
    from train.devices import choose_device, use_all_cores
    from train.distributed import joined

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
                _soften(options, shared[key], recipe, world, stop)
            begun.append(name)
            with _enough_memory(name):
                rows.append((name, _train_one(options, recipe, saved, shared[key], device, world, stop)))
        if world.first:
            from train.view import print_table

            print_table(rows)
    return 0


@contextmanager
def _enough_memory(name: str) -> Iterator[None]:
    """Turn what PyTorch raises when memory runs out, on a GPU or a CPU, into a DeviceError."""
    import torch

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
    from scorer.outputs.lock import owned
    from train import checkpoint, curves
    from train.loop import CURVES, Stopped, Training
    from train.view import view

    model, config = recipe
    folder = _make(options.runs / model.name)
    lock = owned(folder / ".lock", str(folder)) if world.first else nullcontext()
    with lock, view(model.name, config.epochs, quiet=not world.first) as show:
        training = Training(model, config, data, device, world)
        if resumed:
            training.restore(*checkpoint.read(folder / checkpoint.LAST))
        show.say(_describe(training, data))
        try:
            training.run(folder, show, stop)
        except Stopped:
            raise Stopped(f"{folder} is saved") from None
        finally:
            if world.first and training.progress.log:
                curves.draw(folder / CURVES, model.name, training.progress.log)
    return training.best() | {"parameters": training.parameters, "seconds": training.progress.seconds}


def _describe(training: Training, data: Data) -> str:
    precision = "bf16" if training.bf16 else "fp32"
    plan, progress = training.plan, training.progress
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
    from train import checkpoint

    path = options.runs / name / checkpoint.LAST
    default = _override(DEFAULTS[name], overrides)
    if options.restart or not path.exists():
        return default, False
    metadata = checkpoint.metadata(path)
    saved = ModelConfig.from_json(metadata.get("config", "")), TrainConfig.from_json(metadata.get("train", ""))
    if options.resume:
        wanted = _override(saved, overrides)
        difference = ", ".join(_differences(saved[0], wanted[0]) + _differences(saved[1], wanted[1]))
        if difference:
            raise ResumeError(f"{path.parent} was begun with other settings: {difference}", remedy=_REMEDY)
        return saved, True
    if not checkpoint.finished(metadata):
        raise ResumeError(f"{path.parent} holds an unfinished run", remedy=_REMEDY)
    return default, False


_REMEDY = "go on with --resume and the same settings, or start anew with --restart"


def _differences(old: ModelConfig | TrainConfig, new: ModelConfig | TrainConfig) -> list[str]:
    """The fields in which two configurations differ, as "name old -> new"."""
    pairs = ((field.name, getattr(old, field.name), getattr(new, field.name)) for field in fields(old))
    return [f"{name} {before} -> {after}" for name, before, after in pairs if before != after]


def _overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Field -> value as the command line gives them, text still as text."""
    values: dict[str, Any] = {}
    for pair in options.set:
        name, equals, value = pair.partition("=")
        if not equals or name in ("name", "inputs"):
            raise UsageError(f"--set {pair}: not FIELD=VALUE with a field of train/config.py")
        values[name] = value
    given = {"inputs": options.inputs and tuple(options.inputs), "epochs": options.epochs, "seed": options.seed}
    return values | {name: value for name, value in given.items() if value is not None}


def _override(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """The recipe with the fields in `overrides` replaced. Raises UsageError for unknown fields and wrong values."""
    model, train = recipe
    known = {field.name: config for config in recipe for field in fields(config)}
    for name, value in overrides.items():
        if name not in known:
            raise UsageError(f"--set {name}: no such field", remedy=f"one of {', '.join(sorted(known))}")
        parsed = _parse(name, value, getattr(known[name], name))
        if known[name] is recipe[0]:
            model = replace(model, **{name: parsed})
        else:
            train = replace(train, **{name: parsed})
    return model, train


def _parse(name: str, value: Any, current: Any) -> Any:
    """`value`, where it is text, as the kind of thing that `current` is. Raises UsageError."""
    if not isinstance(value, str) or isinstance(current, str):
        return value
    if isinstance(current, bool):
        if value not in ("true", "false"):
            raise UsageError(f"--set {name}={value}: not true or false")
        return value == "true"
    try:
        return type(current)(value)
    except ValueError:
        raise UsageError(f"--set {name}={value}: not {_KINDS[type(current)]}") from None


_KINDS = {int: "a whole number", float: "a number"}


def _load(options: argparse.Namespace, model: ModelConfig, world: World, stop: Callable[[], bool]) -> Data:
    """Decode the shards; without --valid, hold out a part of the training videos."""
    from scorer.errors import TrainingError
    from scorer.inputs.discover import find_shards
    from train.data import Part, Videos, load
    from train.loop import Data, Stopped

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


def _soften(options: argparse.Namespace, data: Data, recipe: Recipe, world: World, stop: Callable[[], bool]) -> None:
    """Find the soft labels before a model's turn begins: a stop meanwhile has nothing to save."""
    from train.kernel import MOST_VIDEOS
    from train.loop import Stopped

    due = time.monotonic() + _TELL_SECONDS[0]

    def at(step: str) -> None:
        nonlocal due
        if stop():
            raise Stopped("stopped while finding the soft labels")
        if world.first and time.monotonic() >= due:
            _tell(f"train: finding soft labels of {len(data.train):,} videos, once: {step}")
            due = time.monotonic() + _TELL_SECONDS[1]

    if not 0 < len(data.train) <= MOST_VIDEOS:
        return
    data.soft_folder = _make(options.cache or options.runs)
    with world.in_turn():
        data.soft_labels(recipe[0].labels, at)


_TELL_SECONDS = (2.0, 15.0)  # before the first line about a wait that may take minutes, and between lines


def _make(folder: Path) -> Path:
    from scorer.errors import OutputError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made: {error.strerror}", remedy="choose another with --runs") from None
    return folder


def _resume_command(options: argparse.Namespace, arguments: Sequence[str], begun: Sequence[str]) -> str:
    """The command that finishes what was stopped.

    Two commands where a model that was not begun yet has an older run, which was to be replaced and not resumed.
    """
    from train.checkpoint import LAST

    again = [argument for argument in arguments if argument not in ("--restart", "--resume")]
    later = [name for name in dict.fromkeys(options.model) if name not in begun]
    if options.resume or not any((options.runs / name / LAST).exists() for name in later):
        return shlex.join(["train", *again, "--resume"])
    first = shlex.join(["train", *_without_models(again), "--model", *begun, "--resume"])
    second = shlex.join(["train", *_without_models(arguments), "--model", *later])
    return f"{first} && {second}" if begun else second


def _without_models(arguments: Sequence[str]) -> list[str]:
    kept, model = [], False
    for argument in arguments:
        model = argument == "--model" or (model and argument in MODELS)
        if not model:
            kept.append(argument)
    return kept


def _tell(line: str) -> None:
    """One line on standard error, without control characters that a file's name or content may hold."""
    print("".join(c if c.isprintable() else repr(c)[1:-1] for c in line), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
