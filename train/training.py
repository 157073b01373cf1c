"""The training loop: epochs over videos that live on the device, without a wait for it until an epoch ends.

Whatever is random (order, dropout, mixup) is seeded by the run's seed and the number of the epoch or step, so that a
run stopped after any step resumes to the very same weights (train/state.py).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scorer.errors import Hint, TrainingError
from train.config import ModelConfig, TrainConfig
from train.cpu import keep_freed_memory, optimize_for_cpu
from train.data import Videos
from train.devices import fast_half
from train.distillation.cache import cached_soft_labels
from train.distillation.soft_labels import AtWork, SoftLabels, point
from train.distributed import World, wrap_ddp
from train.evaluate import EVALUATED, Record, evaluate
from train.facts import trained_on
from train.gather import TRAIN_SHARE, VALID_SHARE, Resident, placed, sent
from train.layers import count_parameters, scalings, set_he, set_prior
from train.losses import LOSSES, Targets, as_weighed, mixed, targets_of
from train.measures import fisher_ratios, log_odds, statistics
from train.registry import build
from train.state import State

HALF = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type of matrix products by its name in a recipe; None for float32."""
_AGREE_EVERY = 20
_SAVED = "what was saved before it stands"


class View(Protocol):
    """Where a run shows itself."""

    def step(self, done: int, steps: int) -> None:
        """`done` of all `steps` of the run are done."""

    def epoch(self, record: Record) -> None:
        """An epoch is done."""

    def log(self, line: str) -> None:
        """Something that the user should know."""


class TrainingStopped(Exception):
    """The run was asked to stop and has saved its state."""


@dataclass
class Data:
    """Training and validation videos. soft_folder: where the training videos' soft labels are cached for later runs."""

    train: Videos
    valid: Videos
    soft_folder: Path | None = None
    _soft: dict[int, SoftLabels] = field(default_factory=dict)

    def fingerprint(self) -> str:
        return f"{self.train.fingerprint()}-{self.valid.fingerprint()}"

    def soft_labels(
        self,
        labels: int,
        device: torch.device,
        at: AtWork = lambda share, what: None,
        log: Callable[[str], None] = lambda line: None,
    ) -> SoftLabels:
        """The training videos' soft labels (train/distillation), in the host's memory, computed once on `device`.

        Raises OutputError, and what `at` raises, which is called with the share that is done and what comes next. `log`
        gets a line for a file of them that cannot be used.
        """
        if labels not in self._soft:
            self._soft[labels] = cached_soft_labels(self.train, labels, self.soft_folder, at, log, device)
        return self._soft[labels]


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
    """One model in training: its state, its videos and its plan."""

    def __init__(self, model: ModelConfig, config: TrainConfig, data: Data, device: torch.device, world: World) -> None:
        self.config, self.device, self.world = config, device, world
        self.plan = Plan.of(len(data.train), config.batch, world)
        self.half = fast_half(device) if config.precision == "auto" else HALF[config.precision]
        half = torch.float16 if device.type == "cuda" else torch.float32
        self.train_data = placed(data.train, device, TRAIN_SHARE, half)
        self.valid_data = placed(data.valid, device, VALID_SHARE)
        self.sample_data = Resident(_sample(data.train, min(len(data.valid), EVALUATED)), device)
        self.soft = data.soft_labels(model.labels, device) if config.soft else None
        torch.manual_seed(config.seed)
        self.model = build(model)
        if config.weights == "he":
            set_he(self.model)
        self.model.to(device)
        with world.in_turn():
            if world.first:  # the others get its model from DistributedDataParallel
                _measure(self.model, model, config, data.train)
        average = deepcopy(self.model) if config.ema else self.model
        losses = torch.zeros(self.plan.steps, device=device)
        optimizer = _optimizer(self.model, config)
        facts = trained_on(data.train, model.inputs)
        self.state = State(model, config, data.fingerprint(), facts, self.model, average, optimizer, losses)
        self.state.scaler = torch.amp.GradScaler(device.type, enabled=self.half is torch.float16)
        if device.type == "cpu":
            optimize_for_cpu(self.model, bf16=self.half is torch.bfloat16)
            keep_freed_memory()
        forward = wrap_ddp(self.model) if world.size > 1 else self.model
        self.forward = _compiled(forward, device, world) if config.compile else forward

    @property
    def parameters(self) -> int:
        """Number of the model's parameters."""
        return count_parameters(self.model)

    def run(self, folder: Path, view: View, stop: Callable[[], bool]) -> None:
        """Train to the last epoch, keeping `folder` up to date.

        Raises:
            TrainingStopped: `stop` answered true; the state is saved.
            TrainingError: the loss is not finite; the folder keeps what was last saved.
            OutputError: the folder cannot be written.
        """
        while self.state.progress.epoch < self.config.epochs:
            start, first = time.monotonic(), self.state.progress.step
            self._epoch(folder, view, stop)
            view.epoch(self._finish_epoch(self.plan.steps - first, time.monotonic() - start))
            self._save(folder, force=self.state.progress.epoch == self.config.epochs)

    def trial(self, epochs: int, view: View, stop: Callable[[], bool]) -> float:
        """Train the first `epochs` of a fresh run, saving nothing: the best MAP@10 on the held-out videos.

        Raises TrainingStopped, TrainingError.
        """
        while self.state.progress.epoch < epochs:
            start = time.monotonic()
            self._epoch(None, view, stop)
            self._finish_epoch(self.plan.steps, time.monotonic() - start)
        return self.state.progress.best

    def _epoch(self, folder: Path | None, view: View, stop: Callable[[], bool]) -> None:
        """The steps of the epoch under way that are still to be done; a stop saves in `folder`."""
        progress, steps = self.state.progress, self.plan.steps
        order = self._order(progress.epoch)
        self.model.train()
        start = time.monotonic()
        for inputs, targets in self.batches(order[progress.step :].unbind(), progress.epoch):
            done = progress.epoch * steps + progress.step
            self.state.losses[progress.step] = self._step(inputs, targets, done)
            progress.step += 1
            view.step(done + 1, self.config.epochs * steps)
            if self._must_stop(stop):
                self._mean_loss()
                progress.seconds += time.monotonic() - start
                self._save(folder, force=True)
                raise TrainingStopped
        self._mean_loss()

    def _must_stop(self, stop: Callable[[], bool]) -> bool:
        """Whether to stop; several processes ask each other now and then, since all must stop at the same step."""
        step = self.state.progress.step
        if self.world.size > 1 and step % _AGREE_EVERY and step < self.plan.steps:
            return False
        return self.world.agree(stop())

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
        _set_rate(self.state.optimizer, learning_rate(self.config, done, self.config.epochs * self.plan.steps))
        if self.config.mixup and self.soft is None:
            inputs, targets = self._mix(inputs, targets, done)
        with torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=self.half is not None):
            logits = self.forward(*inputs)
        loss = LOSSES[self.config.loss](logits, targets)
        scaler = self.state.scaler
        scaler.scale(loss).backward()
        scaler.step(self.state.optimizer)
        scaler.update()
        self.state.optimizer.zero_grad(set_to_none=True)
        self._update_average(done)
        return loss.detach()

    def _mix(self, inputs: list[Tensor], targets: Targets, done: int) -> tuple[list[Tensor], Targets]:
        """Mixup (Zhang et al. 2017, arXiv:1710.09412): each video with another of the batch, in shares of its own."""
        generator = np.random.default_rng(_seed(self.config.seed, "mixup", done, self.world.rank))
        shares = generator.beta(self.config.mixup, self.config.mixup, (len(inputs[0]), 1))
        share_B1 = sent(torch.from_numpy(shares.astype(np.float32)), self.device)
        partner = torch.randperm(len(inputs[0]), device=self.device)
        partners = Targets(targets.index_BP[partner], targets.weight_BP[partner])
        return [_mixture(x, x[partner], share_B1) for x in inputs], mixed(targets, partners, share_B1)

    @torch.no_grad()
    def _update_average(self, done: int) -> None:
        """The average follows the weights (and BatchNorm's statistics), faster in the beginning."""
        if self.config.ema:
            decay = min(self.config.ema, (1 + done) / (10 + done))
            get_ema_multi_avg_fn(decay)(_floats(self.state.average), _floats(self.model), done)

    def _mean_loss(self) -> float:
        """The mean loss of the steps done so far. Raises TrainingError when one is not finite."""
        losses = self.world.mean(self.state.losses[: self.state.progress.step].clone()).cpu()
        bad = (~losses.isfinite()).nonzero()
        if len(bad):
            step, epoch = int(bad[0]) + 1, self.state.progress.epoch + 1
            raise TrainingError(
                f"{self.state.model_config.name}: the loss is {losses[step - 1]:g} at step {step} of epoch {epoch}",
                remedy=_SAVED,
                hints=(Hint.LOWER_RATE,),
            )
        return float(losses.mean())

    def _finish_epoch(self, steps: int, seconds: float) -> Record:
        """Evaluate, note the epoch whose last `steps` took `seconds`, and keep the weights if they are the best."""
        progress = self.state.progress
        record = {"epoch": progress.epoch + 1, "loss": self._mean_loss()}
        record["videos_per_second"] = steps * self.plan.size / seconds
        start = time.monotonic()
        if self.world.first:
            record |= evaluate(self.state.average, self.valid_data, self.config.loss)
            sample = evaluate(self.state.average, self.sample_data, self.config.loss)
            record |= {"train_loss": sample["valid_loss"], "train_MAP@10": sample["MAP@10"]}
        record = self.world.share(record)
        self._check_finite(record)
        seconds += time.monotonic() - start
        self.state.finish_epoch(record, seconds)
        return record

    def _check_finite(self, record: Record) -> None:
        """Raise TrainingError when the weights diverged in the epoch's last step, which no loss of a step has seen."""
        for name in ("valid_loss", "train_loss"):
            if not math.isfinite(record[name]):
                raise TrainingError(
                    f"{self.state.model_config.name}: the {name} is {record[name]:g} after epoch {record['epoch']:.0f}",
                    remedy=_SAVED,
                    hints=(Hint.LOWER_RATE,),
                )

    def _save(self, folder: Path | None, *, force: bool) -> None:
        if folder is not None and self.world.first:
            self.state.save(folder, force=force)


def _measure(model: nn.Module, model_config: ModelConfig, config: TrainConfig, videos: Videos) -> None:
    """Set in a fresh model what is measured on the training videos: input scalings and the output bias."""
    if model_config.scaling == "standard":
        for scaling, (mean, std) in zip(scalings(model), statistics(videos), strict=True):
            scaling.set_statistics(mean, std)
    if model_config.scaling == "fisher":
        for scaling, ratio in zip(scalings(model), fisher_ratios(videos), strict=True):
            scaling.set_weight((ratio / ratio.mean()).sqrt())
    if config.bias == "prior":
        set_prior(model, log_odds(videos, model_config.labels))


def _compiled(forward: nn.Module, device: torch.device, world: World) -> Callable[..., Tensor]:
    """`forward` by torch.compile, on one GPU recorded as CUDA graphs, each of which is launched whole.

    At a few hundred videos a step the GPU computes faster than a host can launch its kernels one by one. Among several
    processes DistributedDataParallel sends gradients meanwhile, which is no part of a graph.
    """
    if device.type != "cuda" or world.size > 1:
        return torch.compile(forward)
    graphed = torch.compile(forward, mode="reduce-overhead")

    def step(*inputs: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()  # what the step before gave may be overwritten
        return graphed(*inputs)

    return step


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: a linear rise, then constant or half a cosine down to 0."""
    rise = config.warmup * steps
    if step < rise:
        return config.lr * (step + 1) / (math.ceil(rise) + 1)
    if config.schedule == "constant":
        return config.lr
    return config.lr * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


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


def _seed(*parts: int | str) -> int:
    """A seed that is well spread whatever the parts."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=6).digest(), "little")
