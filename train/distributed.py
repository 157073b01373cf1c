"""Several processes under torchrun: each takes its share of every batch, and the result is that of one process.

The batch is cut by rank, gradients are averaged by DistributedDataParallel, and BatchNorm takes its statistics over
all ranks. What is left of a difference is rounding, and which units dropout and which videos mixup draw.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn

from scorer.errors import DeviceError, UsageError
from scorer.system.cores import usable_cores

_PATIENCE = timedelta(days=30)
_TORCHRUN = "start several processes with torchrun, or unset WORLD_SIZE"


@dataclass(frozen=True)
class World:
    """This process among `size`; `local` is its number on this machine, which picks its GPU.

    patient: a group of all processes, in which they wait for the first for hours; NCCL's own wait ends after ten
    minutes. None where there is one process.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    patient: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def agree(self, flag: bool) -> bool:
        """Whether `flag` is set in any process, asked without their devices, which nobody has to wait for."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        distributed.all_reduce(flags, distributed.ReduceOp.MAX, group=self.patient)
        return bool(flags.item())

    def mean(self, value: Tensor) -> Tensor:
        """`value` averaged over the processes, in place."""
        if self.size > 1:
            distributed.all_reduce(value)
            value /= self.size
        return value

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Within, the first process alone, on all cores; then the others: what it has made they find."""
        if self.size > 1 and not self.first:
            distributed.barrier(group=self.patient)
        with _all_cores() if self.size > 1 and self.first else nullcontext():
            yield
        if self.size > 1 and self.first:
            distributed.barrier(group=self.patient)

    def share(self, values: dict[str, float]) -> dict[str, float]:
        """The first process's `values`, in every process once all are here."""
        if self.size == 1:
            return values
        box = [values]
        distributed.broadcast_object_list(box, group=self.patient)
        return box[0]


def started_as() -> tuple[int, int, int]:
    """The rank of this process, how many there are, and its number on this machine, as torchrun sets them, or 0, 1, 0.

    Raises UsageError for numbers that are none, or not all there.
    """
    try:
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return 0, 1, 0
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    except (KeyError, ValueError):
        found = ", ".join(f"{name}={os.environ.get(name, '')}" for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"))
        raise UsageError(f"the environment has {found}", remedy=_TORCHRUN) from None


@contextmanager
def joined(cuda: bool) -> Iterator[World]:
    """The processes that torchrun started, or this one alone.

    Raises UsageError as `started_as`, and DeviceError where the processes do not find each other.
    """
    rank, size, local = started_as()
    if size == 1:
        yield World()
        return
    try:
        distributed.init_process_group("nccl" if cuda else "gloo")
    except (ValueError, distributed.DistError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"{size} processes do not find each other: {reason}", remedy=_TORCHRUN) from None
    try:
        patient = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        yield World(rank, size, local, patient)
        distributed.barrier(group=patient)  # one that ends while another still speaks to it may abort
    finally:
        distributed.destroy_process_group()


@contextmanager
def _all_cores() -> Iterator[None]:
    """Compute with all cores meanwhile. torchrun sets OMP_NUM_THREADS to 1, which is meant for processes that share
    a machine at work, and not for one that the others wait for; any other number is a user's.
    """
    before = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Sum(torch.autograd.Function):
    """The sum of a tensor over all processes, and of its gradient on the way back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


class SyncedBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the videos of all processes: (B, W) -> (B, W). torch's own SyncBatchNorm runs on CUDA alone."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    @classmethod
    def of(cls, norm: nn.BatchNorm1d) -> SyncedBatchNorm:
        """One with the parameters and statistics of `norm`."""
        made = cls(norm.num_features, norm.eps, norm.momentum, device="meta")
        made.weight, made.bias = norm.weight, norm.bias
        for name, buffer in norm.named_buffers():
            made.register_buffer(name, buffer)
        return made

    def forward(self, x_BW: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x_BW)
        count = x_BW.shape[0] * distributed.get_world_size()
        x_BW = x_BW.float()
        mean_W = _Sum.apply(x_BW.sum(0)) / count
        centred_BW = x_BW - mean_W
        var_W = _Sum.apply(centred_BW.square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean_W, self.momentum)
            self.running_var.lerp_(var_W * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        return centred_BW * torch.rsqrt(var_W + self.eps) * self.weight + self.bias


def wrap_ddp(model: nn.Module) -> nn.Module:
    """The model, its BatchNorms synchronised in place, wrapped so that its gradients are those of all processes."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.BatchNorm1d:
            model.set_submodule(name, SyncedBatchNorm.of(module))
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
