"""What a run saves, and resumes from to the very same weights.

A state file (last.safetensors) holds the weights, Adam's moments and the weight average as tensors `model.*`,
`exp_avg.*`, `exp_avg_sq.*`, `average.*`, the losses of the epoch under way, and in its metadata both configurations,
the videos' fingerprint and the progress. Where losses are scaled (float16) there is `scaling` too, float64 (3,): the
scale, steps since it last changed, and steps that the optimiser has taken. It holds no random generator: whatever is
random is seeded by the run's seed and the number of the epoch or step.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from scorer.errors import Hint, ModelError, ResumeError
from train import checkpoint
from train.config import ModelConfig, TrainConfig
from train.evaluate import Record
from train.facts import TrainedOn
from train.files import remove_file, replace_file

CURVES = "curves.png"
SAVE_EVERY = 60.0
"""Seconds between state files: a gigabyte for the report's BiLSTM, so not after every epoch of a few seconds."""


@dataclass
class TrainingProgress:
    """Where a run stands. epoch: epochs done. step: steps done of the next one. seconds: spent so far. best: MAP@10."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    log: list[Record] = field(default_factory=list)

    @staticmethod
    def from_json(text: str, steps: int, epochs: int) -> TrainingProgress:
        """The progress of a run of `epochs` of `steps`. Raises TypeError, ValueError or RecursionError for another."""
        values = json.loads(text)
        log = [{str(name): float(value) for name, value in record.items()} for record in values.pop("log")]
        found = TrainingProgress(**values, log=log)
        if not (0 <= int(found.step) <= steps and 0 <= int(found.epoch) <= epochs and len(log) == found.epoch):
            raise ValueError("progress beyond the run's end")
        if any("MAP@10" not in record for record in log) or not math.isfinite(found.best + found.seconds):
            raise ValueError("epochs without metrics")
        return found


@dataclass
class State:
    """A run's configurations, weights, their average, optimiser and progress.

    fingerprint: of the videos. trained_on: what a checkpoint says about them. losses: float32 (steps of an epoch,), of
    the epoch under way. best_weights: those of the best epoch where they are not saved yet.
    """

    model_config: ModelConfig
    config: TrainConfig
    fingerprint: str
    trained_on: TrainedOn
    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Tensor
    progress: TrainingProgress = field(default_factory=TrainingProgress)
    best_weights: dict[str, Tensor] | None = None
    scaler: torch.amp.GradScaler = field(default_factory=lambda: torch.amp.GradScaler("cpu", enabled=False))
    saved: float = field(default_factory=time.monotonic)

    def best(self) -> Record:
        """The epoch with the best MAP@10 so far."""
        return max(self.progress.log, key=lambda record: record["MAP@10"])

    def finish_epoch(self, record: Record, seconds: float) -> None:
        """Note an epoch that took `seconds`, and keep its weights if they are the best."""
        progress = self.progress
        if record["MAP@10"] > progress.best:
            progress.best = record["MAP@10"]
            self.best_weights = {name: tensor.cpu().clone() for name, tensor in self.average.state_dict().items()}
        progress.epoch, progress.step, progress.seconds = progress.epoch + 1, 0, progress.seconds + seconds
        record["seconds"] = progress.seconds
        progress.log.append(record)

    def save(self, folder: Path, *, force: bool) -> None:
        """Write the best weights and the state, in this order: a best newer than the state is found again on resume.

        Unless `force`d, nothing is written within SAVE_EVERY of the last time. Raises OutputError.
        """
        if not force and time.monotonic() - self.saved <= SAVE_EVERY:
            return
        if self.best_weights is not None:
            shown = {name: self.best()[name] for name in ("MAP@10", "GAP@20", "Hit@1", "PERR")}
            best = checkpoint.Checkpoint(self.model_config, self.best_weights, shown, self.trained_on)
            checkpoint.save(folder / checkpoint.BEST, best, self.config)
            self.best_weights = None
        self._write_logs(folder)
        checkpoint.write(folder / checkpoint.LAST, self._tensors(), self._metadata())
        if not self.progress.log:
            _remove_results(folder)
        self.saved = time.monotonic()

    def _write_logs(self, folder: Path) -> None:
        config = {"model": asdict(self.model_config), "train": asdict(self.config), "data": self.fingerprint}
        lines = "".join(json.dumps(record) + "\n" for record in self.progress.log)
        replace_file(folder / "config.json", lambda part: part.write_text(json.dumps(config, indent=2) + "\n"))
        replace_file(folder / "metrics.jsonl", lambda part: part.write_text(lines))

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.config.ema:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            tensors |= {f"{kind}.{name}": moments[kind] for kind in ("exp_avg", "exp_avg_sq") if kind in moments}
        return tensors | {"losses": self.losses} | self._scaling()

    def _scaling(self) -> dict[str, Tensor]:
        if not self.scaler.is_enabled():
            return {}
        scaling = self.scaler.state_dict()
        taken = next((float(moments["step"]) for moments in self.optimizer.state.values()), 0.0)
        return {"scaling": torch.tensor([scaling["scale"], scaling["_growth_tracker"], taken], dtype=torch.float64)}

    def _metadata(self) -> dict[str, str]:
        return {
            "config": self.model_config.to_json(),
            "train": self.config.to_json(),
            "data": self.fingerprint,
            "progress": json.dumps(asdict(self.progress)),
        }

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Continue from what `save` wrote. Raises ResumeError for other videos, ModelError for a damaged state."""
        try:
            if metadata["data"] != self.fingerprint:
                raise ResumeError("the run was trained on other videos", hints=(Hint.SAME_VIDEOS,))
            self.progress = TrainingProgress.from_json(metadata["progress"], len(self.losses), self.config.epochs)
            _check_types(self.model, _under("model.", tensors))
            self.model.load_state_dict(_under("model.", tensors))
            if self.config.ema:
                _check_types(self.average, _under("average.", tensors))
                self.average.load_state_dict(_under("average.", tensors))
            self.losses.copy_(tensors["losses"])
            self._restore_moments(tensors, self._restore_scaling(tensors))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise ModelError(f"damaged training state: {error}", hints=(Hint.RESTART,)) from None

    def _restore_scaling(self, tensors: dict[str, Tensor]) -> float:
        """The steps that the optimiser has taken: all that are done, unless losses are scaled and some overflowed."""
        done = float(self.progress.epoch * len(self.losses) + self.progress.step)
        if not self.scaler.is_enabled() or "scaling" not in tensors:
            return done
        scale, growing, taken = tensors["scaling"].tolist()
        self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": scale, "_growth_tracker": int(growing)})
        return min(float(taken), done)

    def _restore_moments(self, tensors: dict[str, Tensor], done: float) -> None:
        for name, parameter in self.model.named_parameters():
            if done and parameter.requires_grad:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(done, device=self.losses.device),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(self.losses.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(self.losses.device),
                }


def _remove_results(folder: Path) -> None:
    """Remove what an earlier run left and this one, before its first epoch's end, has nothing to put in place of."""
    for name in (checkpoint.BEST, CURVES):
        remove_file(folder / name)


def _check_types(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Raise TypeError where one is not of the model's own type: it would be converted, and lose what that has not."""
    for name, tensor in model.state_dict().items():
        if name in tensors and tensors[name].dtype != tensor.dtype:
            raise TypeError(f"{name} is {tensors[name].dtype}, not {tensor.dtype}")


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
