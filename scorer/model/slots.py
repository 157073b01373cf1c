"""Execution slots: a model computes one batch at a time in each, in smaller batches where memory runs out.

On the CPU the slots share one session and have a thread each: that costs no more core time than one slot of all
threads, for BiLSTM 5 to 10% less, and no slot waits for another at the end of an operator (benchmarks/slots.py). On
GPUs every slot is a session of its own (scorer/model/cuda.py).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import DeviceError, Hint, ModelError
from scorer.model.contract import Contract, outputs
from scorer.model.predictor import Embeddings, Features, Predictions
from scorer.model.runtime import Session, device_errors
from scorer.system.threads import map_in_order

Outcome: TypeAlias = tuple[Predictions, Embeddings | None]
"""Predictions, and embeddings where they were asked for."""


class Slot(Protocol):
    """Where one batch at a time is computed."""

    def fit(self, contract: Contract, size: int, k: int) -> None:
        """Prepare for batches of `size` and `k` labels each; no other slot runs meanwhile. Raises MemoryError."""

    def buffer(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """See `scorer.model.predictor.Predictor.buffer`; any thread may call it."""

    def run(self, features: Features, k: int, embeddings: bool) -> Outcome:
        """Predict n videos, where n and k are at most what the slot was fitted for, with their embeddings or not."""


class CpuSlot:
    """A share of the CPU's session, which several threads may use at once."""

    def __init__(self, session: Session, path: str) -> None:
        """`path` is the model's, for messages."""
        self._session, self._path = session, path

    def fit(self, contract: Contract, size: int, k: int) -> None:
        """Nothing to prepare: memory is found while a batch runs."""

    def buffer(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Any array will do."""
        return np.empty(shape, np.float32)

    def run(self, features: Features, k: int, embeddings: bool) -> Outcome:
        """A video alone runs as two: a matrix-vector kernel, where one is chosen, rounds otherwise."""
        videos = asked = len(next(iter(features.values())))
        if videos == 1:
            features, asked = {name: np.repeat(values, 2, axis=0) for name, values in features.items()}, 2
        asked_for = {**features, "k": np.array([k], np.int64)}
        scores, labels, *rest = self._session.run(outputs(embeddings), asked_for)
        if scores.shape != (asked, k) or labels.shape != (asked, k):
            given = f"{scores.shape} scores and {labels.shape} labels"
            raise ModelError(f"{self._path} was asked for {k} labels of {asked} videos and gave {given}")
        if any(len(values) != asked for values in rest):
            raise ModelError(f"{self._path} was asked for embeddings of {asked} videos and gave {rest[0].shape}")
        return Predictions(scores[:videos], labels[:videos]), rest[0][:videos] if rest else None


class SlotPool:
    """Shares a device's slots among threads.

    batch_size: the most videos that run at once in a slot; halved when memory runs out, which `notes` tells, unless
    scores depend on it.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        device: str,
        contract: Contract,
        batch_size: int,
        k: int,
        convert: Callable[[Features], Features] | None = None,
        *,
        size_matters: bool = False,
    ) -> None:
        """
        Args:
            contract: what the slots are fitted for.
            k: labels a video to expect; more refit the slots when they are asked for.
            convert: turns features into those that the model reads.
            size_matters: the bits of a score depend on the size that the slots are fitted for, so it may not change.

        Raises:
            DeviceError: there is not enough memory for one video, or the device failed.
        """
        self.batch_size, self.notes = batch_size, list[str]()
        self._device, self._contract, self._convert = device, contract, convert
        self._count, self._size_matters, self._buffer = len(slots), size_matters, slots[0].buffer
        self._k = 0  # the most labels that the slots are fitted for
        self._refitting = threading.Lock()
        self._idle: queue.SimpleQueue[Slot] = queue.SimpleQueue()
        for slot in slots:
            self._idle.put(slot)
        self._refit(batch_size, k)

    def __len__(self) -> int:
        return self._count

    def buffer(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """See `scorer.model.predictor.Predictor.buffer`."""
        return self._buffer(shape)

    def run(self, features: Features, videos: int, k: int, embeddings: bool = False) -> Outcome:
        """Predict `videos` >= 1, in pieces of at most `batch_size` that are spread over the slots.

        Raises:
            DeviceError: the device failed, or has not enough memory for one video.
        """
        parts = self._run_all(features, videos, k, embeddings)
        if len(parts) == 1:
            return parts[0]
        scores, labels = zip(*(predictions for predictions, _ in parts), strict=True)
        own = [values for _, values in parts if values is not None]
        return Predictions(np.concatenate(scores), np.concatenate(labels)), np.concatenate(own) if own else None

    def _run_all(self, features: Features, videos: int, k: int, embeddings: bool) -> list[Outcome]:
        """The predictions in pieces of at most `batch_size`, in order."""
        size = self.batch_size
        if videos <= size:
            return self._run_piece(features, videos, k, embeddings)
        starts = range(0, videos, size)

        def run(start: int) -> list[Outcome]:
            piece = {name: values[start : start + size] for name, values in features.items()}
            return self._run_piece(piece, min(size, videos - start), k, embeddings)

        found = map_in_order(run, starts, min(len(self), len(starts)), "slot")
        return [part for parts in found for part in parts]

    def _run_piece(self, features: Features, videos: int, k: int, embeddings: bool) -> list[Outcome]:
        """The predictions of a piece from one slot, or of smaller pieces where memory ran out."""
        if k > self._k:
            self._refit(self.batch_size, k)
        slot, size = self._idle.get(), self.batch_size
        try:
            if videos <= size:
                with device_errors(self._device):
                    return [slot.run(self._convert(features) if self._convert else features, k, embeddings)]
        except MemoryError:
            size = size // 2
        finally:
            self._idle.put(slot)
        self._refit(size, k)
        return self._run_all(features, videos, k, embeddings)

    def _refit(self, size: int, k: int) -> None:
        """Fit all slots for batches of at most `size` and at least `k` labels; none of them runs meanwhile."""
        with self._refitting:
            size, k = min(size, self.batch_size), max(k, self._k)
            if (size, k) == (self.batch_size, self._k):
                return
            slots = [self._idle.get() for _ in range(self._count)]
            try:
                size = self._fit(slots, size, k)
            finally:
                for slot in slots:
                    self._idle.put(slot)
            if size < self.batch_size:
                self.notes.append(f"memory ran out: batches of {size:,} instead of {self.batch_size:,}")
            self.batch_size, self._k = size, k

    def _fit(self, slots: Sequence[Slot], size: int, k: int) -> int:
        """Fit the slots for batches of `size`, halved until memory suffices; returns the size."""
        while size >= 1:
            if self._size_matters and self._k and size < self.batch_size:
                reason = f"{self._device} ran out of memory in batches of {self.batch_size:,}"
                raise DeviceError(reason, remedy="free some", hints=(Hint.SMALLER_BATCH,))
            try:
                with device_errors(self._device):
                    for slot in slots:
                        slot.fit(self._contract, size, k)
                return size
            except MemoryError:
                size //= 2
        raise DeviceError(
            f"{self._device} has not enough memory for one video", remedy="free some, or take int8 or fp16"
        )
