"""Shards to predictions, in order: while some threads are in the model, another reads and decodes the next batch.

A video's prediction depends neither on its batch nor on threads, workers or restarts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.inputs.batching import Batch, batches
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.records import Level, Schema
from scorer.inputs.source import Source
from scorer.model.predictor import Embeddings, Predictor
from scorer.pipeline.ordered import in_order
from scorer.system.cores import usable_cores
from scorer.system.signals import StopRequest

OnError: TypeAlias = Literal["fail", "skip"]

_SLOTS_A_DECODER = 4  # an extra thread for so many: fewer seldom wait for each other, and an extra one costs them cache
_MORE_THREADS_FOR_GPU = 3  # than slots, since it has to be fed faster
COALESCED_VIDEOS = 2048
"""Videos whose rows are made at once: of 256, making them takes twice as long a video."""
_BYTES_IN_FLIGHT = 200 << 15  # of predictions that may wait to be written while a disk is slow: 32,768 videos' top 10
_BYTES_A_VIDEO, _BYTES_A_LABEL = 80, 12
_TRIAL_SECONDS = 1.0  # how long one decoder is watched before more are started
_TOO_BUSY = 0.9  # share of that time which it worked, so that the model must have waited
_WORTH_WORKERS = 1 << 30  # bytes still to read; less is done before the workers are
_MOST_STARTED = 8  # workers
MOST_WORKERS = 64
"""That a user may ask for."""


@dataclass(frozen=True)
class PredictionBatch:
    """One batch's predictions: scores float32 and labels int64, (n, k) each. The batch's features are released.

    embeddings: float32 (n, width), where they were asked for.
    """

    batch: Batch
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    embeddings: Embeddings | None = None


class PredictionStream:
    """A model's predictions over shards.

    workers: decoding processes at the moment; 0 decodes in a thread. known_labels: of the model.
    """

    def __init__(
        self,
        predictor: Predictor,
        shards: Sequence[Source],
        k: int,
        *,
        workers: int | None = None,
        on_error: OnError = "fail",
        level: Level = "auto",
        columns: Mapping[str, str] | None = None,
        embeddings: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """See `scorer.job.spec.Job` for the options; `log` gets a line when workers are started later, or cannot be."""
        self.workers = workers or 0
        self.known_labels = predictor.facts.labels
        self._predictor, self._shards, self._k = predictor, shards, k
        self._on_error, self._embeddings, self._log = on_error, embeddings, log
        self._schema = Schema(predictor.facts.inputs, level, columns or {})
        self._may_add_workers = workers is None
        self._label_fault_said = self._unread_frames_said = False
        on_cpu = predictor.facts.device == "cpu"
        more = predictor.slots // _SLOTS_A_DECODER if on_cpu else _MORE_THREADS_FOR_GPU
        self._threads = predictor.slots + more

    def from_position(
        self, start: Position = BEGINNING, stop: StopRequest | None = None
    ) -> Generator[list[PredictionBatch]]:
        """The predictions from `start` on, made ahead, those of about COALESCED_VIDEOS at a time where they come fast.

        The end comes early once `stop` is set.

        Raises what `scorer.inputs.batching.batches` and `Predictor.run` raise, after what comes before it.
        """
        size = self._predictor.batch_size
        embedding = 4 * self._predictor.facts.embeddings if self._embeddings else 0
        videos = _BYTES_IN_FLIGHT // (_BYTES_A_VIDEO + _BYTES_A_LABEL * self._k + embedding)
        max_in_flight = self._threads + videos // size
        coalesce = max(1, min(COALESCED_VIDEOS, videos // 4) // size)
        return in_order(self._predict, self._decoded(start), self._threads, max_in_flight, stop, coalesce)

    def _decoded(self, start: Position) -> Generator[Batch]:
        if self._may_add_workers and self._enough_to_read(start):
            start = yield from self._watched(start)
        yield from self._batches(start)

    def _watched(self, start: Position) -> Generator[Batch, None, Position]:
        """Batches of one decoder, until it proves too slow; returns where they end."""
        began, idle = time.monotonic(), 0.0
        with closing(self._batches(start)) as source:
            for batch in source:
                start = batch.end
                waits = time.monotonic()
                yield batch
                now = time.monotonic()
                idle += now - waits
                if now - began < _TRIAL_SECONDS:
                    continue
                if idle < (1 - _TOO_BUSY) * (now - began) and self._enough_to_read(start):
                    self.workers = min(usable_cores() - 1, _MOST_STARTED)
                    self._log(f"the model outruns one decoder: {self.workers} decoding processes from here on")
                    return start
                began, idle = now, 0.0
        return start

    def _enough_to_read(self, start: Position) -> bool:
        return usable_cores() > 2 and self._left(start) > _WORTH_WORKERS

    def _left(self, start: Position) -> int:
        """Bytes from `start` on; of a compressed shard, whose positions go further than its size, at least these."""
        sizes = [shard.stat.size for shard in self._shards[start.shard :]]
        return sum(sizes) - min(start.offset, sizes[0]) if sizes else 0

    def _batches(self, start: Position) -> Generator[Batch]:
        for batch in self._decoded_from(start):
            if batch.label_faults and not self._label_fault_said:
                self._label_fault_said = True
                self._log(f"{batch.label_faults[0].message}: such labels are not used")
            if batch.unread_frames and not self._unread_frames_said:
                self._unread_frames_said = True
                self._log("there are frames beside the means of them; the means are scored")
            yield batch

    def _decoded_from(self, start: Position) -> Generator[Batch]:
        yield from batches(
            self._shards,
            self._schema,
            self._predictor.batch_size,
            start=start,
            on_error=self._on_error,
            workers=self.workers,
            depth=self._threads,
            fewer=self._fewer_workers,
        )

    def _fewer_workers(self, started: int, reason: str) -> None:
        self._log(f"{self.workers - started} of {self.workers} decoding processes could not be started: {reason}")
        self.workers = started

    def _predict(self, batch: Batch) -> PredictionBatch:
        embeddings = None
        if self._embeddings:
            (scores, labels), embeddings = self._predictor.embed(batch.features, self._k)
        else:
            scores, labels = self._predictor.run(batch.features, self._k)
        batch.release()
        return PredictionBatch(batch, scores, labels, embeddings)
