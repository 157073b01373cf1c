"""Batches on the device: from videos that live there, or streamed to it where they are too many."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from train.data import Videos

Gathered = tuple[list[Tensor], Tensor]
"""Inputs, float32 (B, width) each, and label indices (B, P), padded with -1."""

_AHEAD = 3
_DEVICE_SHARE = 0.6


class Resident:
    """Videos on the device, from which batches are gathered there.

    features: (n, width) each, in `dtype`; labels: int32 (n, P).
    """

    def __init__(self, videos: Videos, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.features = [torch.from_numpy(values).to(device, dtype) for values in videos.features]
        self.labels = torch.from_numpy(videos.labels).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Sequence[Tensor]) -> Generator[Gathered, None, None]:
        """A batch for each item of `order`, int64 (B,) indices of videos; none where a stop left an epoch no steps."""
        if not len(order):
            return
        rows = torch.cat(tuple(order)).to(self.labels.device)
        for rows_B in rows.split([len(part) for part in order]):
            yield [values[rows_B].float() for values in self.features], self.labels[rows_B]


class Streamed:
    """Videos that are too many for the device: they stay in the host's memory, or in the files that are mapped there.

    A thread gathers the next batches into pinned memory while the device computes on the present one.
    """

    def __init__(self, videos: Videos, device: torch.device) -> None:
        self.features = [torch.from_numpy(values) for values in videos.features]
        self.labels = torch.from_numpy(videos.labels)
        self.device = device

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, order: Sequence[Tensor]) -> Generator[Gathered, None, None]:
        """As Resident.batches."""
        with ThreadPoolExecutor(1, initializer=self._begin_thread) as thread:
            ahead = deque(thread.submit(self._gather, rows_B) for rows_B in order[:_AHEAD])
            for step in range(len(order)):
                *inputs, labels = (part.to(self.device, non_blocking=True) for part in ahead.popleft().result())
                yield inputs, labels
                if step + _AHEAD < len(order):
                    ahead.append(thread.submit(self._gather, order[step + _AHEAD]))

    def _begin_thread(self) -> None:
        """A thread's GPU is the first until it is told of another."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _gather(self, rows_B: Tensor) -> list[Tensor]:
        parts = [values.index_select(0, rows_B) for values in (*self.features, self.labels)]
        return [part.pin_memory() for part in parts] if self.device.type == "cuda" else parts


def placed(videos: Videos, device: torch.device, dtype: torch.dtype) -> Resident | Streamed:
    """The videos on the device where they fit into its free memory beside the training, else streamed to it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if sum(values.size for values in videos.features) * dtype.itemsize > _DEVICE_SHARE * free:
            return Streamed(videos, device)
    return Resident(videos, device, dtype)
