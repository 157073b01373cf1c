"""The runs that the command `train` asks for, one model after the other on the same videos."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from scorer.errors import DeviceError, Hint, ModelError, OutputError, ResumeError, TrainingError
from scorer.inputs.discover import find_shards
from scorer.outputs.lock import owned
from scorer.system.memory import is_out_of_memory
from scorer.system.phases import nobody, phase
from scorer.system.signals import StopRequest
from train import checkpoint, curves
from train.config import ModelConfig, Recipe, TrainConfig
from train.data import VOCABULARIES, Split, Videos, label_count, load
from train.devices import choose_device, private_compiler_cache, use_all_cores
from train.distillation.cache import describe_cost
from train.distillation.soft_labels import AtWork, taught_in_parts
from train.distributed import World, joined, started_as
from train.evaluate import Record
from train.files import remove_file
from train.layers import count_parameters
from train.overrides import Overrides, differences, overridden
from train.registry import build, config_from_json, spec
from train.state import CURVES
from train.training import HALF, Data, Training, TrainingStopped
from train.view import TrialView, log, print_table, view

TRIAL_EPOCHS = 2
"""Of soft and of own labels, where one teacher cannot learn from all videos."""


@dataclass
class Runner:
    """What the runs of one command have in common. begun: the models whose turn has come."""

    options: argparse.Namespace
    overrides: Overrides
    stop: StopRequest
    begun: list[str] = field(default_factory=list)

    def train_all(self) -> None:
        """Train the models one after the other; print them side by side."""
        use_all_cores()
        device = choose_device(self.options.device, started_as()[2])
        shared: dict[object, Data] = {}
        rows: list[tuple[str, Record]] = []
        with private_compiler_cache(), joined(device.type == "cuda") as world:
            runs = [_look(self.options, name, self.overrides) for name in self.options.model]
            for run in runs:
                if run.finished is not None:
                    log(f"train: {run.folder} is finished and stands")
                    rows.append((run.name, run.finished))
                    continue
                with _enough_memory(run.name):
                    key = (run.model.inputs, run.labels)
                    shared[key] = shared.get(key) or self._load(run, world)
                    rows.append((run.name, self._train(run, shared[key], device, world)))
            if world.first:
                print_table(rows)
                _log_what_next(runs)

    def _train(self, run: Run, data: Data, device: torch.device, world: World) -> Record:
        """Train one model in its folder; its best epoch's measures."""
        model, config = run.recipe
        if run.labels is None:
            model = replace(model, labels=self._labels(data))
        if config.soft:
            self._compute_soft_labels(data, model, device, world)
            if "soft" not in self.overrides and not run.resumed and taught_in_parts(len(data.train), model.labels):
                config = replace(config, soft=self._soft_labels_are_better(model, config, data, device, world))
        self.begun.append(run.name)
        folder = _make(run.folder)
        lock = owned(folder / ".lock", str(folder)) if world.first else nullcontext()
        with lock:
            with self._phase(f"measuring the videos for {run.name}", world):
                training = Training(model, config, data, device, world)
            if run.resumed:
                training.state.restore(*checkpoint.read(folder / checkpoint.LAST))
            with view(run.name, config.epochs, self.stop, quiet=not world.first) as show:
                show.log(_describe(training, data))
                try:
                    training.run(folder, show, self.stop.is_set)
                except TrainingStopped:
                    raise TrainingStopped(f"{folder} is saved") from None
                finally:
                    if world.first and training.state.progress.log:
                        curves.draw(folder / CURVES, model.name, training.state.progress.log)
            if world.first and not self.options.keep:
                remove_file(folder / checkpoint.LAST)
        return training.state.best() | {"parameters": training.parameters, "seconds": training.state.progress.seconds}

    def _soft_labels_are_better(
        self, model: ModelConfig, config: TrainConfig, data: Data, device: torch.device, world: World
    ) -> bool:
        """Whether the student learns more from them than from the videos' own labels, by trials of a few epochs.

        A teacher of a part of the videos knows less than all their labels say, once they are many.
        """
        found = []
        for name, soft in (("soft labels", True), ("the videos' own labels", False)):
            with self._phase(f"trying {name} for {TRIAL_EPOCHS} epochs", world) as at:
                training = Training(model, replace(config, soft=soft), data, device, world)
                shown = TrialView(at, TRIAL_EPOCHS * training.plan.steps)
                found.append(training.trial(TRIAL_EPOCHS, shown, self.stop.is_set))
        if world.first:
            better = "soft labels" if found[0] >= found[1] else "the videos' own labels"
            log(
                f"train: {model.name}: MAP@10 after {TRIAL_EPOCHS} epochs is {found[0]:.4f} with soft labels, "
                f"{found[1]:.4f} with the videos' own: {better} it is"
            )
        return found[0] >= found[1]

    def _load(self, run: Run, world: World) -> Data:
        """Decode the shards; without --valid, hold out a part of the training videos."""
        options = self.options

        def videos(shards: list[str], split: Split, at: AtWork) -> Videos:
            return load(
                find_shards(shards, allow_empty=options.allow_empty),
                run.model.inputs,
                run.labels,
                split=split,
                cache=options.cache,
                columns=options.columns,
                at=lambda share: at(share, ""),
            )

        splits: tuple[tuple[str, list[str], Split], ...] = (
            ("training", options.data, "train" if options.valid is None else "all"),
            ("held-out", options.valid or options.data, "valid" if options.valid is None else "all"),
        )
        found = []
        with world.in_turn() if options.cache else nullcontext():
            for name, shards, split in splits:
                with self._phase(f"reading {name} videos", world) as at:
                    found.append(videos(shards, split, at))
        if not len(found[1]):
            raise TrainingError("too few videos to hold some out", hints=(Hint.VALIDATION,))
        return Data(found[0], found[1])

    def _labels(self, data: Data) -> int:
        """As many labels as the videos need; those of the sample shards are YouTube-8M's."""
        largest = int(max(data.train.labels.max(initial=0), data.valid.labels.max(initial=0)))
        if all(Path(shard.address).match("samples/samples*.tfrecord") for shard in find_shards(self.options.data)):
            return max(largest + 1, next(iter(VOCABULARIES)))
        return label_count(largest)[0]

    def _compute_soft_labels(self, data: Data, model: ModelConfig, device: torch.device, world: World) -> None:
        """Compute the soft labels before a model's turn begins: a stop meanwhile has no run to save."""
        if not len(data.train):
            return
        cache = self.options.cache
        data.soft_folder = _make(cache, "--cache") if cache else _make(self.options.runs)
        if world.first and (text := describe_cost(data.train, model.labels, data.soft_folder, device)):
            log(f"train: {text}")
        with world.in_turn(), self._phase(f"soft labels of {len(data.train):,} videos", world) as at:
            data.soft_labels(model.labels, device, at, lambda line: log(f"train: {line}") if world.first else None)

    @contextmanager
    def _phase(self, name: str, world: World) -> Iterator[AtWork]:
        """The view of a phase, which a request to stop ends."""
        with self.stop.shown_elsewhere(), phase("train", name) if world.first else nullcontext(nobody) as show:

            def at(share: float, what: str) -> None:
                if self.stop.is_set():
                    raise TrainingStopped(f"stopped while at it: {name}")
                show(share)

            yield at


@dataclass
class Run:
    """One model's run: its folder and recipe, and what an earlier call left there.

    labels: as many as were asked for, None where the videos say. resumed: whether an unfinished run is resumed.
    finished: the best epoch of a finished run, which stands.
    """

    name: str
    folder: Path
    recipe: Recipe
    labels: int | None
    resumed: bool = False
    finished: Record | None = None

    @property
    def model(self) -> ModelConfig:
        return self.recipe[0]


def _look(options: argparse.Namespace, name: str, overrides: Overrides) -> Run:
    """The run that is asked for. Raises ResumeError when an earlier one is in the way or had another recipe."""
    folder = options.runs / name
    recipe = overridden(spec(name).recipe, overrides)
    labels = recipe[0].labels if "labels" in overrides else None
    left = next((path for path in (folder / checkpoint.LAST, folder / checkpoint.BEST) if path.exists()), None)
    if options.restart or left is None:
        return Run(name, folder, recipe, labels)
    metadata = checkpoint.metadata(left)
    done = left.name == checkpoint.BEST or checkpoint.finished(metadata)
    if not options.resume:
        if done:
            raise ResumeError(f"{folder} holds a finished run", remedy=_FINISHED)
        raise ResumeError(f"{folder} holds an unfinished run", hints=(Hint.RESUME, Hint.RESTART))
    saved = config_from_json(metadata.get("config", "")), TrainConfig.from_json(metadata.get("train", ""))
    wanted = overridden(saved, overrides)
    difference = ", ".join(differences(saved[0], wanted[0]) + differences(saved[1], wanted[1]))
    if difference:
        reason = f"{folder} was begun with other settings: {difference}"
        raise ResumeError(reason, hints=(Hint.RESUME, Hint.RESTART))
    return Run(name, folder, saved, saved[0].labels, not done, _best_of(folder, saved[0]) if done else None)


_FINISHED = "replace it with --restart, or choose another folder with --runs"


def _best_of(folder: Path, model: ModelConfig) -> Record:
    """The best epoch of a finished run. Raises ModelError where its log is damaged."""
    try:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        best = max(lines, key=lambda record: record["MAP@10"])
        seconds = lines[-1]["seconds"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise ModelError(f"{folder}: damaged metrics.jsonl", hints=(Hint.RESTART,)) from None
    with torch.device("meta"):
        network = build(model)
    return dict(best) | {"parameters": count_parameters(network), "seconds": seconds}


@contextmanager
def _enough_memory(name: str) -> Iterator[None]:
    """Turn what PyTorch and NumPy raise when memory runs out, on a GPU or a CPU, into a DeviceError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0] if str(error) else "out of memory"
        raise DeviceError(f"{name}: {reason}", hints=(Hint.SMALLER_BATCH, Hint.OWN_LABELS)) from None


def _describe(training: Training, data: Data) -> str:
    precision = next(name for name, half in HALF.items() if half is training.half)
    plan, progress, labels = training.plan, training.state.progress, training.state.model_config.labels
    largest = int(data.train.labels.max(initial=0))
    whose = f", as {VOCABULARIES[labels]} has" if labels in VOCABULARIES else ""
    text = (
        f"{training.parameters:,} parameters, {labels:,} labels{whose} (the largest of the videos is {largest:,}), "
        f"{len(data.train):,} training videos in {plan.steps:,} batches of "
        f"{plan.size:,}, {len(data.valid):,} to validate, {training.device}, {precision}"
    )
    return f"{text}, resumed after epoch {progress.epoch}, step {progress.step}" if progress.seconds else text


def _log_what_next(runs: list[Run]) -> None:
    """Where the runs are, and the command that comes next."""
    for run in runs:
        where = "" if run.folder.parent == Path("runs") else f" --runs {run.folder.parent}"
        log(f"train: {run.folder} is done; next: yt8m export --model {run.name}{where}")


def _make(folder: Path, option: str = "--runs") -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be made: {error.strerror}", remedy=f"choose another with {option}"
        ) from None
    return folder
