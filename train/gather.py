"""Batches on the device: from videos that live there, or streamed to it where they are too many."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from train.data import Videos

Gathered = tuple[list[Tensor], Tensor]
"""Inputs, float32 (B, width) each, and label indices (B, P), padded with -1."""

_AHEAD = 3
TRAIN_SHARE = 0.6
"""The share of a GPU's free memory that training videos may take; the training itself takes the rest."""
VALID_SHARE = 0.05
"""That of held-out videos, which are needed once an epoch."""


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, a host's, on the device, without a wait: what is not page-locked CUDA copies while the caller waits."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Resident:
    """Videos on the device, from which batches are gathered there.

    features: (n, width) each, in `dtype`; labels: int32 (n, P).
    """

    def __init__(self, videos: Videos, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self.device = device
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

    A thread gathers the next batches and, where the device is a GPU, copies them to it on a stream of their own, while
    it computes on the present one.
    """

    def __init__(self, videos: Videos, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
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
                *inputs, labels = self._received(*ahead.popleft().result())
                yield inputs, labels
                if step + _AHEAD < len(order):
                    ahead.append(thread.submit(self._gather, order[step + _AHEAD]))

    def _begin_thread(self) -> None:
        """A thread's GPU is the first until it is told of another."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)

    def _gather(self, rows_B: Tensor) -> tuple[list[Tensor], Any]:
        """In the thread: a batch on the device, and on a GPU the event after which it is there."""
        parts = [values.index_select(0, rows_B) for values in (*self.features, self.labels)]
        if self._stream is None:
            return [sent(part, self.device) for part in parts], None
        with torch.cuda.stream(self._stream):
            return [sent(part, self.device) for part in parts], self._stream.record_event()

    def _received(self, parts: list[Tensor], event: Any) -> list[Tensor]:
        """The batch, for the stream that computes: it waits for the event, and the batch's memory for it."""
        if event is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(event)
            for part in parts:
                part.record_stream(stream)
        return parts


def placed(
    videos: Videos, device: torch.device, share: float, dtype: torch.dtype = torch.float32
) -> Resident | Streamed:
    """The videos on the device where they fit into a `share` of its free memory, else streamed to it."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if sum(values.size for values in videos.features) * dtype.itemsize > share * free:
            return Streamed(videos, device)
    return Resident(videos, device, dtype)
