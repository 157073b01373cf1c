"""One job: shards in, a committed file out. cli -> here -> predictions -> batches and model, then rows, commit.

Writing and committing happen in the caller's thread, while predictions are made ahead in others.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from scorer.errors import Hint, OutputError, RecordError, UsageError, Yt8mError
from scorer.evaluation.duplicates import count_duplicates, id_keys
from scorer.evaluation.metrics import Metrics, read_metrics
from scorer.inputs.batching import Batch, joined
from scorer.inputs.position import BEGINNING
from scorer.inputs.source import FileStat
from scorer.job.spec import Job, Progress, Report, Stopped
from scorer.kernels import loops
from scorer.kernels.packed import metric_record
from scorer.model.predictor import ModelFacts, Predictor
from scorer.outputs.formats import HEADER, format_rows
from scorer.outputs.journal import Commit
from scorer.outputs.sink import Output, opened, places
from scorer.outputs.stream import Stream, streamed
from scorer.pipeline.predict import PredictionBatch, PredictionStream
from scorer.system.signals import StopRequest

_LOOK_SECONDS = 0.05  # between looks for a reader of the output


def score(
    job: Job,
    predictor: Predictor,
    stop: StopRequest,
    watch: Callable[[Progress], None],
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Do the job, or go on with it.

    Args:
        stop: set it to end the job after the batch in hand.
        watch: called after every batch, or a few where they come fast.
        log: called with a line when decoding processes are started on the way.

    Raises:
        Yt8mError: whatever is wrong with the shards, the output or the leftovers; what was done is committed.
        BrokenPipeError: the reader of a pipe has gone away.
        Stopped: `stop` was set; what was done is committed.
    """
    facts = predictor.facts
    if not 1 <= job.top_k <= facts.labels:
        raise UsageError(f"k is {job.top_k}, outside 1..{facts.labels}, the labels of {facts.path}")
    began = time.monotonic()
    with _sink(job, facts, stop) as sink:
        resumed = sink.last.scored if sink.last else 0
        source = PredictionStream(predictor, job.shards, job.top_k, workers=job.workers, on_error=job.on_error, log=log)
        if sink.completed is not None:
            assert isinstance(sink, Output)
            sink.finish()
        else:
            _Run(job, facts, sink, source, stop, watch).complete()
        assert sink.completed is not None
        return Report(
            record=dict(sink.completed),
            seconds=time.monotonic() - began,
            resumed=resumed,
            batch_size=predictor.batch_size,
            workers=source.workers,
        )


@dataclass(frozen=True)
class _Written:
    """Batches as bytes: their rows, their ids' keys, and their metric records."""

    batches: list[Batch]
    rows: bytes
    ids: bytes
    hits: bytes


def _written(predicted: list[PredictionBatch]) -> _Written:
    batches, hits = [some.batch for some in predicted], b""
    ids, truth = joined(batches)
    labels = np.concatenate([some.labels for some in predicted])
    scores = np.concatenate([some.scores for some in predicted])
    if any(batch.labelled for batch in batches):
        hits = loops.active.metric_records(labels, scores, truth)
    return _Written(batches, format_rows(ids, labels, scores), id_keys(ids), hits)


class _Run:
    """The writing end of a job, and its counts."""

    def __init__(
        self,
        job: Job,
        facts: ModelFacts,
        sink: Output | Stream,
        source: PredictionStream,
        stop: StopRequest,
        watch: Callable[[Progress], None],
    ) -> None:
        self._job, self._facts, self._sink = job, facts, sink
        self._source = source
        self._stop, self._watch = stop, watch
        last = sink.last or Commit(BEGINNING)
        self._end, self._scored, self._set_aside, self._lost = last.end, last.scored, last.set_aside, last.bytes_lost
        self._finished: list[tuple[FileStat, int]] = []  # since the last commit
        self._metrics = Metrics(job.top_k)
        if sink.last is not None:
            with sink.notes("hits") as hits:
                self._metrics = read_metrics(hits, job.top_k)
        self._bytes_before = [0, *itertools.accumulate(shard.stat.size for shard in job.shards)]

    def complete(self) -> None:
        limit = self._job.max_errors
        if limit is not None and self._set_aside > limit:
            already = f"{self._set_aside:,} records are quarantined already, and {limit:,} may be"
            raise UsageError(already, hints=(Hint.MORE_ERRORS,))
        if self._sink.last is None:
            self._sink.append(rows=HEADER)
        try:
            self._score()
        except OutputError:
            raise  # what could not be written cannot be committed either
        except Yt8mError as error:
            self._keep(error)
            raise
        self._commit()
        if self._end.shard < len(self._job.shards):  # only a stop ends the predictions early without an error
            raise Stopped(self._scored if isinstance(self._sink, Output) else 0)
        self._sink.complete(self._record())

    def _score(self) -> None:
        due = time.monotonic() + self._job.commit_seconds
        with closing(self._source.from_position(self._end, self._stop)) as predicted:
            for some in predicted:
                self._append(written := _written(some))
                read = self._bytes_before[self._end.shard] + self._end.offset
                self._watch(Progress(self._scored, self._end.shard, read))
                self._check_limit(written.batches)
                if time.monotonic() >= due:
                    self._commit()
                    due = time.monotonic() + self._job.commit_seconds
                if self._stop.is_set():
                    break

    def _append(self, written: _Written) -> None:
        """Append batches and count them. Nothing here may fail between the two: a commit must not see one alone."""
        batches = written.batches
        finished = [(self._job.shards[i].stat, records) for batch in batches for i, records in batch.finished]
        set_aside = [aside for batch in batches for aside in batch.quarantined]
        self._sink.append(
            rows=written.rows,
            quarantine=b"".join(json.dumps(asdict(aside)).encode() + b"\n" for aside in set_aside),
            ids=written.ids,
            hits=written.hits,
        )
        self._metrics.add(np.frombuffer(written.hits, metric_record(self._job.top_k)))
        self._finished += finished
        self._scored += sum(map(len, batches))
        self._set_aside += len(set_aside)
        self._lost += sum(aside.bytes_lost for aside in set_aside)
        self._end = batches[-1].end

    def _check_limit(self, batches: list[Batch]) -> None:
        limit, set_aside = self._job.max_errors, [aside for batch in batches for aside in batch.quarantined]
        if limit is not None and self._set_aside > limit and set_aside:
            bad = set_aside[-1]
            reason = f"{bad.reason}; {self._set_aside:,} records are quarantined by now, and {limit:,} may be"
            raise RecordError(bad.path, reason, record=bad.record, offset=bad.offset, hints=(Hint.MORE_ERRORS,))

    def _commit(self) -> None:
        if self._sink.last is None or self._sink.last.end != self._end:
            within = self._end.offset > 0 and self._end.shard < len(self._job.shards)
            begun = self._job.shards[self._end.shard].stat if within else None
            self._sink.commit(
                Commit(self._end, self._scored, self._set_aside, self._lost, tuple(self._finished), begun)
            )
            self._finished = []

    def _keep(self, error: Yt8mError) -> None:
        """Commit what was done before `error`, and let it say so."""
        if self._scored + self._set_aside and isinstance(self._sink, Output):
            self._commit()
            error.message = f"{error.message} ({self._scored:,} videos are kept)"
            error.hints += (Hint.RESUME_LATER,)

    def _record(self) -> dict[str, Any]:
        """The completion record. Neither times nor anything else that a restart would change."""
        finished = self._sink.finished
        read = sum(records for _, records in finished)
        if read != self._scored + self._set_aside:
            raise AssertionError(f"read {read} records, scored {self._scored} and set {self._set_aside} aside")
        job, rows = self._job, self._sink.rows
        with self._sink.notes("ids") as ids:
            duplicates = count_duplicates(ids, self._scored)
        return {
            "format": 1,
            "output": {"name": os.path.basename(job.output), "bytes": rows.length, "crc32c": f"{rows.crc:08x}"},
            "options": {**_options(job, self._facts), "on_error": job.on_error},
            "read": read,
            "scored": self._scored,
            "quarantined": self._set_aside,
            "bytes_lost": self._lost,
            "duplicates": duplicates,
            "metrics": self._metrics.result(),
            "shards": [
                {"path": shard.canonical, "bytes": stamp.size, "mtime_ns": stamp.version, "records": records}
                for shard, (stamp, records) in zip(job.shards, finished, strict=True)
            ],
        }


def _sink(job: Job, facts: ModelFacts, stop: StopRequest) -> AbstractContextManager[Output | Stream]:
    where = places(job.output)
    if where is not None:
        return opened(where, _options(job, facts), job.shards, job.leftovers)
    if job.leftovers == "resume":
        raise UsageError(f"only a file can be resumed, and {job.output} is none", hints=(Hint.NO_RESUME,))
    return streamed(job.output, lambda: _wait(stop))


def _wait(stop: StopRequest) -> None:
    """A moment. Raises Stopped where `stop` is set by then."""
    if stop.wait(_LOOK_SECONDS):
        raise Stopped(0)


def _options(job: Job, facts: ModelFacts) -> dict[str, Any]:
    """What decides the bytes of the rows. Batch size, workers, threads and what a bad record does do not."""
    return {
        "model_sha256": facts.sha256,
        "provider": facts.provider,
        "runtime": facts.runtime,
        "top_k": job.top_k,
    }
