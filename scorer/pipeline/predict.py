"""Shards to predictions, in order: each thread reads and decodes a batch, runs the model on it, and makes its rows.

A video's prediction depends neither on its batch nor on threads or restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.inputs.batching import Batch, packed
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.records import Level, Schema
from scorer.inputs.source import Source
from scorer.kernels import loops
from scorer.model.predictor import Embeddings, Predictor
from scorer.outputs.row_format import RowFormat
from scorer.outputs.sink import Chunk, joined_embeddings
from scorer.pipeline.ranges import Done, RangeReader
from scorer.system.cores import usable_cores
from scorer.system.signals import StopRequest

OnError: TypeAlias = Literal["fail", "skip"]

_SLOTS_A_DECODER = 4  # an extra thread for so many: fewer seldom wait for each other, and an extra one costs them cache
COALESCED_VIDEOS = 2048
"""Videos whose rows are made and appended at once: of 256, that takes twice as long a video."""
_RANGE_VIDEOS = (
    1024  # that a thread takes at once; of 256, opening shards and finding a record takes 1% of a CPU's time
)
_LARGE_BATCH = 1024  # rows of these are made by the thread that predicted, of smaller ones together by who writes them
_BYTES_IN_FLIGHT = 200 << 15  # of predictions that may wait to be written while a disk is slow: 32,768 videos' top 10
_BYTES_A_VIDEO, _BYTES_A_LABEL = 80, 12


@dataclass(frozen=True)
class _Predicted:
    """A batch's predictions: scores float32 and labels int64, (n, k) each, embeddings float32 (n, width) or None.

    chunk: of these, where one was made of this batch alone.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    embeddings: Embeddings | None
    chunk: Chunk | None = None


class PredictionStream:
    """A model's predictions over shards."""

    def __init__(
        self,
        predictor: Predictor,
        shards: Sequence[Source],
        k: int,
        *,
        on_error: OnError = "fail",
        level: Level = "auto",
        columns: Mapping[str, str] | None = None,
        embeddings: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        """See `scorer.job.spec.Job` for the options; `log` gets a line about what is not read, and fewer threads."""
        self._predictor, self._k, self._embeddings, self._log = predictor, k, embeddings, log
        self._label_fault_logged = self._unread_frames_logged = False
        self._row_format: RowFormat | None = None
        self._threads = _threads(predictor)
        schema = Schema(predictor.facts.inputs, level, columns or {})
        embedding = 4 * predictor.facts.embeddings if embeddings else 0
        self._videos = _BYTES_IN_FLIGHT // (_BYTES_A_VIDEO + _BYTES_A_LABEL * k + embedding)
        self._range_batches = max(1, min(_RANGE_VIDEOS, self._videos // 4) // predictor.batch_size)
        self._reader = RangeReader(
            shards,
            schema,
            predictor.batch_size,
            self._predict,
            threads=self._threads,
            skip=on_error == "skip",
            range_batches=self._range_batches,
            buffer=predictor.buffer,
            log=log,
        )

    def from_position(
        self, start: Position = BEGINNING, stop: StopRequest | None = None, row_format: RowFormat | None = None
    ) -> Generator[Chunk]:
        """The predictions from `start` on, made ahead, those of about COALESCED_VIDEOS in a chunk where they come fast,
        with rows where a format is given.

        The end comes early once `stop` is set.

        Raises what `RangeReader.read` and `Predictor.run` raise, after what comes before it.
        """
        self._row_format = row_format
        max_in_flight = self._threads + self._videos // (self._range_batches * self._predictor.batch_size)
        coalesce = max(1, min(COALESCED_VIDEOS, self._videos // 4) // self._predictor.batch_size)
        with closing(self._reader.read(start, max_in_flight, stop, coalesce)) as found:
            for some in found:
                for done in some:
                    self._log_what_is_not_read(done.batch)
                if some[0].result.chunk is None:
                    yield self._chunk(some)
                else:
                    yield from map(_placed, some)

    def _log_what_is_not_read(self, batch: Batch) -> None:
        if batch.label_faults and not self._label_fault_logged:
            self._label_fault_logged = True
            self._log(f"{batch.label_faults[0].message}: such labels are not used")
        if batch.unread_frames and not self._unread_frames_logged:
            self._unread_frames_logged = True
            self._log("there are frames beside the means of them; the means are scored")

    def _predict(self, batch: Batch) -> _Predicted:
        """Run the model on a batch, whose features are released then."""
        embeddings = None
        if self._embeddings:
            (scores, labels), embeddings = self._predictor.embed(batch.features, self._k)
        else:
            scores, labels = self._predictor.run(batch.features, self._k)
        batch.release()
        predicted = _Predicted(scores, labels, embeddings)
        if self._predictor.batch_size < _LARGE_BATCH:
            return predicted
        return replace(predicted, chunk=self._chunk([Done(batch, predicted)]))

    def _chunk(self, some: Sequence[Done[_Predicted]]) -> Chunk:
        """Some batches in order, at least one, as one chunk."""
        batches = [done.batch for done in some]
        ids, truth = packed(batches)
        labels = np.concatenate([done.result.labels for done in some])
        scores = np.concatenate([done.result.scores for done in some])
        labelled = any(batch.labelled for batch in batches)
        chunk = Chunk(
            ids=ids,
            labels=labels,
            scores=scores,
            metric_records=loops.active.metric_records(labels, scores, truth) if labelled else b"",
            quarantined=[bad for batch in batches for bad in batch.quarantined],
            end=batches[-1].end,
            finished=[shard for batch in batches for shard in batch.finished],
            unknown_labels=loops.active.count_unknown(truth, self._predictor.facts.labels) if labelled else 0,
            embeddings=joined_embeddings([done.result.embeddings for done in some]),
            consumed=batches[-1].consumed,
        )
        if self._row_format is not None:
            chunk.rows(self._row_format)
            chunk.kept("ids")
        return chunk


def _threads(predictor: Predictor) -> int:
    """On a GPU as many as there are cores, beside those that wait for it: more would wait for Python's lock."""
    slots = predictor.slots
    return slots + (slots // _SLOTS_A_DECODER if predictor.facts.device == "cpu" else usable_cores())


def _placed(done: Done[_Predicted]) -> Chunk:
    """The chunk of a batch, with the numbers that its records have by now."""
    assert done.result.chunk
    batch = done.batch
    return replace(done.result.chunk, quarantined=batch.quarantined, end=batch.end, finished=batch.finished)
