"""The training loop: epochs over videos that live on the device, without a wait for it until an epoch ends.

Whatever is random (order, dropout, mixup) is seeded by the run's seed and the number of the epoch or step, so that a
run stopped after any step goes on to the very same weights. A state file (last.safetensors) therefore holds no
generator; it holds the weights, Adam's moments and the weight average as tensors `model.*`, `exp_avg.*`,
`exp_avg_sq.*`, `average.*`, the losses of the epoch under way, and in its metadata both configurations and `Progress`.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scorer.errors import ModelError, ResumeError, TrainingError
from scorer.evaluation import metrics
from train import checkpoint
from train.config import ModelConfig, TrainConfig
from train.cpu import keep_freed_memory, quicken
from train.data import Videos, fisher_ratios, log_odds, statistics
from train.devices import bf16_is_fast
from train.distributed import World, spread
from train.files import remove_file, replace_file
from train.gather import Resident, placed
from train.kernel import MOST_VIDEOS, SoftLabels, kept_soft_labels, point
from train.losses import LOSSES, Targets, as_weighed, mixed, targets_of
from train.models import build, scalings, set_he, set_prior

TOP = 20
CURVES = "curves.png"
SAVE_EVERY = 60.0
"""Seconds between state files: a gigabyte for the paper's BiLSTM, so not after every epoch of a few seconds."""
_EVALUATED = 2048
_AGREE_EVERY = 20
_LOWER_RATE = "what was saved before it stands; train with a lower rate, e.g. --set lr=0.0003"

Record = dict[str, float]
"""One epoch: epoch, loss, MAP@10, GAP@20, Hit@1, PERR, valid_loss, train_MAP@10, train_loss, videos_per_second, ..."""


class View(Protocol):
    """Where a run shows itself."""

    def step(self, done: int, steps: int) -> None:
        """`done` of all `steps` of the run are done."""

    def epoch(self, record: Record) -> None:
        """An epoch is done."""

    def say(self, line: str) -> None:
        """Something that the user should know."""


class Stopped(Exception):
    """The run was asked to stop and has saved its state."""


@dataclass
class Progress:
    """Where a run stands. epoch: epochs done. step: steps done of the next one. seconds: spent so far. best: MAP@10."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    log: list[Record] = field(default_factory=list)


@dataclass
class Data:
    """Training and validation videos. soft_folder: where the training videos' soft labels are kept for later runs."""

    train: Videos
    valid: Videos
    soft_folder: Path | None = None
    _soft: SoftLabels | None = None

    def fingerprint(self) -> str:
        return f"{self.train.fingerprint()}-{self.valid.fingerprint()}"

    def soft_labels(self, labels: int, at: Callable[[str], None] = lambda step: None) -> SoftLabels | None:
        """The training videos' soft labels (train/kernel.py), found once; None where there are too many videos.

        Raises OutputError, and what `at` raises, which is called with each step.
        """
        if self._soft is None and len(self.train) <= MOST_VIDEOS:
            self._soft = kept_soft_labels(self.train, labels, self.soft_folder, at)
        return self._soft


@dataclass(frozen=True)
class Plan:
    """How an epoch is cut: `steps` batches of `size` videos, over all processes."""

    steps: int
    size: int

    @staticmethod
    def of(videos: int, batch: int, world: World) -> Plan:
        """Equal batches of at most `batch`, a multiple of 16 a process where they are large, so that few are left out.

        Raises TrainingError when a process would have fewer than two videos.
        """
        steps = math.ceil(videos / min(batch, videos)) if videos else 1
        grain = world.size * (16 if videos // steps >= 512 * world.size else 1)
        size = videos // steps // grain * grain
        if size < 2 * world.size:
            raise TrainingError(
                f"{videos} training videos are too few", remedy="BatchNorm needs two a process and step"
            )
        return Plan(steps, size)


class Training:
    """One model in training: its weights, their average, the optimiser and the progress."""

    def __init__(self, model: ModelConfig, config: TrainConfig, data: Data, device: torch.device, world: World) -> None:
        self.model_config, self.config, self.device, self.world = model, config, device, world
        self.fingerprint = data.fingerprint()
        self.plan = Plan.of(len(data.train), config.batch, world)
        self.bf16 = config.precision == "bf16" or (config.precision == "auto" and bf16_is_fast(device))
        self.train_data = placed(data.train, device, torch.float16 if device.type == "cuda" else torch.float32)
        self.valid_data = Resident(data.valid, device)
        self.sample_data = Resident(_sample(data.train, min(len(data.valid), _EVALUATED)), device)
        self.soft = data.soft_labels(model.labels) if config.soft else None
        torch.manual_seed(config.seed)
        self.model = build(model)
        if config.weights == "he":
            set_he(self.model)
        self.model.to(device)
        self._measure(data.train)
        self.average = deepcopy(self.model) if config.ema else self.model
        self.optimizer = _optimizer(self.model, config)
        if device.type == "cpu":
            quicken(self.model, bf16=self.bf16)
            keep_freed_memory()
        spread_model = spread(self.model) if world.size > 1 else self.model
        self.forward = torch.compile(spread_model) if config.compile else spread_model
        self.losses = torch.zeros(self.plan.steps, device=device)
        self.progress = Progress()
        self._best: dict[str, Tensor] | None = None
        self._saved = time.monotonic()

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def run(self, folder: Path, view: View, stop: Callable[[], bool]) -> None:
        """Train to the last epoch, keeping `folder` up to date.

        Raises:
            Stopped: `stop` answered true; the state is saved.
            TrainingError: the loss is not finite; the folder keeps what was last saved.
            OutputError: the folder cannot be written.
        """
        while self.progress.epoch < self.config.epochs:
            start, first = time.monotonic(), self.progress.step
            self._epoch(folder, view, stop)
            view.epoch(self._finish_epoch(self.plan.steps - first, time.monotonic() - start))
            self._save(folder, force=self.progress.epoch == self.config.epochs)

    def _epoch(self, folder: Path, view: View, stop: Callable[[], bool]) -> None:
        """The steps of the epoch under way that are still to be done."""
        progress, steps = self.progress, self.plan.steps
        order = self._order(progress.epoch)
        self.model.train()
        start = time.monotonic()
        for inputs, targets in self.batches(order[progress.step :].unbind(), progress.epoch):
            done = progress.epoch * steps + progress.step
            self.losses[progress.step] = self._step(inputs, targets, done)
            progress.step += 1
            view.step(done + 1, self.config.epochs * steps)
            if self._must_stop(stop):
                self._mean_loss()
                progress.seconds += time.monotonic() - start
                self._save(folder, force=True)
                raise Stopped
        self._mean_loss()

    def _must_stop(self, stop: Callable[[], bool]) -> bool:
        """Whether to stop; several processes ask each other now and then, since all must stop at the same step."""
        if self.world.size > 1 and self.progress.step % _AGREE_EVERY and self.progress.step < self.plan.steps:
            return False
        return self.world.agree(stop(), self.device)

    def _order(self, epoch: int) -> Tensor:
        """The rows of each step that are this process's: int64 (steps, size / processes)."""
        generator = torch.Generator().manual_seed(_seed(self.config.seed, "order", epoch))
        order = torch.randperm(len(self.train_data), generator=generator)[: self.plan.steps * self.plan.size]
        share = self.plan.size // self.world.size
        return order.view(self.plan.steps, self.world.size, share)[:, self.world.rank]

    def batches(self, order: Sequence[Tensor], epoch: int) -> Iterator[tuple[list[Tensor], Targets]]:
        """Inputs and targets for each of `order`, indices (B,): these videos, or an epoch's points around them."""
        if self.soft is None:
            for inputs, labels in self.train_data.batches(order):
                yield inputs, targets_of(labels, self.config.loss)
            return
        number = epoch % len(self.soft.share)
        others, share, index, weight = (part[number] for part in vars(self.soft).values())
        trios = [torch.cat([rows_B, *others[rows_B].long().unbind(1)]) for rows_B in order]
        share, index, weight = (part.to(self.device) for part in (share, index, weight))
        on_device = torch.cat(tuple(order)).to(self.device).split([len(rows_B) for rows_B in order]) if order else ()
        for rows_B, (inputs, _) in zip(on_device, self.train_data.batches(trios), strict=True):
            soft = Targets(index[rows_B].long(), weight[rows_B].float())
            yield [point(trio.chunk(3), share[rows_B, None]) for trio in inputs], as_weighed(soft, self.config.loss)

    def _step(self, inputs: list[Tensor], targets: Targets, done: int) -> Tensor:
        """One step of the optimiser; the loss, still on the device."""
        torch.manual_seed(_seed(self.config.seed, "step", done, self.world.rank))
        _set_rate(self.optimizer, learning_rate(self.config, done, self.config.epochs * self.plan.steps))
        if self.config.mixup and self.soft is None:
            inputs, targets = self._mix(inputs, targets, done)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.forward(*inputs)
        loss = LOSSES[self.config.loss](logits, targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average(done)
        return loss.detach()

    def _mix(self, inputs: list[Tensor], targets: Targets, done: int) -> tuple[list[Tensor], Targets]:
        """Mixup (Zhang et al. 2017, arXiv:1710.09412): each video with another of the batch, in shares of its own."""
        generator = np.random.default_rng(_seed(self.config.seed, "mixup", done, self.world.rank))
        shares = generator.beta(self.config.mixup, self.config.mixup, (len(inputs[0]), 1))
        share_B1 = torch.from_numpy(shares.astype(np.float32)).to(self.device)
        partner = torch.randperm(len(inputs[0]), device=self.device)
        partners = Targets(targets.index_BP[partner], targets.weight_BP[partner])
        return [_mixture(x, x[partner], share_B1) for x in inputs], mixed(targets, partners, share_B1)

    @torch.no_grad()
    def _update_average(self, done: int) -> None:
        """The average follows the weights (and BatchNorm's statistics), faster in the beginning."""
        if self.config.ema:
            decay = min(self.config.ema, (1 + done) / (10 + done))
            torch._foreach_lerp_(_floats(self.average), _floats(self.model), 1 - decay)

    def _mean_loss(self) -> float:
        """The mean loss of the steps done so far. Raises TrainingError when one is not finite."""
        losses = self.world.mean(self.losses[: self.progress.step].clone()).cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            step, epoch = int(bad[0]) + 1, self.progress.epoch + 1
            raise TrainingError(
                f"{self.model_config.name}: the loss is {losses[step - 1]:g} at step {step} of epoch {epoch}",
                remedy=_LOWER_RATE,
            )
        return float(losses.mean())

    def _finish_epoch(self, steps: int, seconds: float) -> Record:
        """Evaluate, note the epoch whose last `steps` took `seconds`, and keep the weights if they are the best."""
        progress = self.progress
        record = {"epoch": progress.epoch + 1, "loss": self._mean_loss()}
        record["videos_per_second"] = steps * self.plan.size / seconds
        start = time.monotonic()
        if self.world.first:
            record |= evaluate(self.average, self.valid_data, self.config.loss)
            sample = evaluate(self.average, self.sample_data, self.config.loss)
            record |= {"train_loss": sample["valid_loss"], "train_MAP@10": sample["MAP@10"]}
        record = self.world.share(record)
        self._check_finite(record)
        seconds += time.monotonic() - start
        if record["MAP@10"] > progress.best:
            progress.best = record["MAP@10"]
            self._best = {name: tensor.cpu().clone() for name, tensor in self.average.state_dict().items()}
        progress.epoch, progress.step, progress.seconds = progress.epoch + 1, 0, progress.seconds + seconds
        record["seconds"] = progress.seconds
        progress.log.append(record)
        return record

    def _check_finite(self, record: Record) -> None:
        """Raise TrainingError when the weights diverged in the epoch's last step, which no loss of a step has seen."""
        for name in ("valid_loss", "train_loss"):
            if not math.isfinite(record[name]):
                raise TrainingError(
                    f"{self.model_config.name}: the {name} is {record[name]:g} after epoch {record['epoch']:.0f}",
                    remedy=_LOWER_RATE,
                )

    def _save(self, folder: Path, *, force: bool) -> None:
        """Write the best weights and the state, in this order: a best newer than the state is found again on resume."""
        if not self.world.first or not (force or time.monotonic() - self._saved > SAVE_EVERY):
            return
        if self._best is not None:
            shown = {name: self.best()[name] for name in ("MAP@10", "GAP@20", "Hit@1", "PERR")}
            checkpoint.save(folder / checkpoint.BEST, self.model_config, self.config, self._best, shown)
            self._best = None
        self._write_logs(folder)
        checkpoint.write(folder / checkpoint.LAST, self._tensors(), self._metadata())
        if not self.progress.log:
            _remove_results(folder)
        self._saved = time.monotonic()

    def best(self) -> Record:
        """The epoch with the best MAP@10 so far."""
        return max(self.progress.log, key=lambda record: record["MAP@10"])

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
        return tensors | {"losses": self.losses}

    def _metadata(self) -> dict[str, str]:
        return {
            "config": self.model_config.to_json(),
            "train": self.config.to_json(),
            "data": self.fingerprint,
            "progress": json.dumps(asdict(self.progress)),
        }

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        """Go on from what `_save` wrote. Raises ResumeError for other videos, ModelError for a damaged state."""
        if metadata["data"] != self.fingerprint:
            raise ResumeError("the run was trained on other videos", remedy="give the same --data and --valid")
        try:
            self.progress = Progress(**json.loads(metadata["progress"]))
            self.model.load_state_dict(_under("model.", tensors))
            if self.config.ema:
                self.average.load_state_dict(_under("average.", tensors))
            self.losses.copy_(tensors["losses"])
            self._restore_moments(tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise ModelError(f"damaged training state: {error}", remedy="train anew with --restart") from None

    def _restore_moments(self, tensors: dict[str, Tensor]) -> None:
        done = float(self.progress.epoch * self.plan.steps + self.progress.step)
        for name, parameter in self.model.named_parameters():
            if done and parameter.requires_grad:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(done, device=self.device),
                    "exp_avg": tensors[f"exp_avg.{name}"].to(self.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(self.device),
                }

    def _measure(self, videos: Videos) -> None:
        if self.model_config.scaling == "standard":
            for scaling, (mean, std) in zip(scalings(self.model), statistics(videos), strict=True):
                scaling.set_statistics(mean, std)
        if self.model_config.scaling == "fisher":
            for scaling, ratio in zip(scalings(self.model), fisher_ratios(videos), strict=True):
                scaling.set_weight((ratio / ratio.mean()).sqrt())
        if self.config.bias == "prior":
            set_prior(self.model, log_odds(videos, self.model_config.labels))


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: a linear rise, then constant or half a cosine down to 0."""
    rise = config.warmup * steps
    if step < rise:
        return config.lr * (step + 1) / (math.ceil(rise) + 1)
    if config.schedule == "constant":
        return config.lr
    return config.lr * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


@torch.inference_mode()
def evaluate(model: nn.Module, videos: Resident, loss: str) -> Record:
    """valid_loss, MAP@10, GAP@20, Hit@1 and PERR of labelled videos, in float32 as the exported model computes."""
    model.eval()
    total = torch.zeros((), device=videos.labels.device)
    tops = []
    for inputs, labels in videos.batches(torch.arange(len(videos)).split(_EVALUATED)):
        logits = model(*inputs)
        total += LOSSES[loss](logits, targets_of(labels, loss)) * len(labels)
        tops.append(_top(logits))
    top_scores, top_labels = (torch.cat(parts).cpu().numpy() for parts in zip(*tops, strict=True))
    truth = videos.labels.cpu().numpy()
    known = truth >= 0
    splits = np.concatenate([[0], np.cumsum(known.sum(axis=1))])
    found = metrics.evaluate(top_labels, top_scores, truth[known].astype(np.int64), splits)
    return {"valid_loss": float(total) / len(videos), **found}


def _top(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and labels (n, 20) of the best; fewer labels are filled up with one that is never true."""
    scores, labels = logits.topk(min(TOP, logits.shape[1]))
    missing = (0, TOP - scores.shape[1])
    return functional.pad(scores.sigmoid(), missing), functional.pad(labels, missing, value=logits.shape[1])


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam, with weight decay on the matrices alone."""
    live = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in live if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in live if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, fused=True)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def _floats(model: nn.Module) -> list[Tensor]:
    """What a weight average averages: trained parameters and floating buffers."""
    tensors: Iterable[Tensor] = [*(p for p in model.parameters() if p.requires_grad), *model.buffers()]
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def _mixture(x: Tensor, partner: Tensor, share_B1: Tensor) -> Tensor:
    return partner.lerp(x, share_B1)


def _sample(videos: Videos, count: int) -> Videos:
    """`count` videos evenly spread."""
    return videos.rows(np.linspace(0, len(videos) - 1, min(count, len(videos))).astype(np.int64))


def _remove_results(folder: Path) -> None:
    """Remove what an earlier run left and this one, before its first epoch's end, has nothing to put in place of."""
    for name in (checkpoint.BEST, CURVES):
        remove_file(folder / name)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _seed(*parts: int | str) -> int:
    """A seed that is well spread whatever the parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "little")
