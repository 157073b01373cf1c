"""One job on this machine: shards in, a committed output out.

Writing and committing happen in the caller's thread, while predictions are made ahead in others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scorer.errors import UsageError
from scorer.inputs.columns import check_columns
from scorer.job.record import Options, digest_of_names
from scorer.job.spec import Job, Progress, Report, Stopped
from scorer.job.writer import JobWriter
from scorer.model.predictor import Predictor, require_embeddings
from scorer.outputs.formats import make_format
from scorer.outputs.open import open_sink
from scorer.outputs.row_format import RowFormat, RowOptions
from scorer.outputs.sink import JobKey, ResumePolicy, Sink, shard_id
from scorer.pipeline.predict import PredictionStream
from scorer.system.signals import StopRequest

if TYPE_CHECKING:
    from scorer.outputs.embeddings import EmbeddingOutput

_LOOK_SECONDS = 0.05  # between looks for a reader of the output


def score(
    job: Job,
    predictor: Predictor,
    stop: StopRequest,
    watch: Callable[[Progress], None],
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """Do the job, or resume it.

    Args:
        stop: set it to end the job after the batch in hand.
        watch: called after every batch, or a few where they come fast.
        log: called with a line about what is not read.

    Raises:
        Yt8mError: whatever is wrong with the shards, the output or an earlier run; what was done is committed.
        BrokenPipeError: the reader of a pipe has gone away.
        Stopped: `stop` was set; what was done is committed.
    """
    began = time.monotonic()
    with opened_job(job, options_of(job, predictor), stop) as opened:
        writer = opened.writer
        if opened.sink.completed is None:
            chunks = predictions_of(job, predictor, log).from_position(writer.end, stop, opened.row_format)
            writer.write(chunks, stop, watch, job.commit_seconds)
        return opened.complete(began, predictor)


@dataclass(frozen=True)
class OpenedJob:
    """A job whose output is open. resumed: videos that an earlier run had scored."""

    job: Job
    sink: Sink
    writer: JobWriter
    row_format: RowFormat
    resumed: int

    def complete(self, began: float, predictor: Predictor) -> Report:
        """Put the output in its place, and say what was done since `began`. Raises as `JobWriter.complete`."""
        return Report(
            record=self.writer.complete(self.job.output),
            quarantine_place=self.sink.quarantine_place,
            seconds=time.monotonic() - began,
            resumed=self.resumed,
            batch_size=predictor.batch_size,
        )


@contextmanager
def opened_job(job: Job, options: Options, stop: StopRequest) -> Iterator[OpenedJob]:
    """The output of `job`, begun or continued. Raises what `score` raises about it."""
    shards = tuple(map(shard_id, job.shards))
    key = JobKey(options.key(), shards)
    row_format = make_format(job.row_format, RowOptions(job.threshold, job.names))
    embeddings = embeddings_of(job.embeddings, options)
    with open_output(job.output, key, row_format, job.resume_policy, stop, embeddings) as sink:
        writer = JobWriter(sink, shards, options, job.max_errors)
        yield OpenedJob(job, sink, writer, row_format, writer.scored)


def options_of(job: Job, predictor: Predictor) -> Options:
    """What decides the bytes of the rows. Raises UsageError where the model has fewer labels than are asked for, or
    other than are named, or a threshold that cannot be; ModelError where it gives no embeddings.
    """
    facts = predictor.facts
    if not 1 <= job.top_k <= facts.labels:
        raise UsageError(f"k is {job.top_k}, outside 1..{facts.labels}, the labels of {facts.path}")
    if not 0 <= job.threshold <= 1:
        raise UsageError(f"the threshold {job.threshold} is no confidence", remedy="choose one from 0 to 1")
    if job.names is not None and len(job.names) != facts.labels:
        raise UsageError(f"{len(job.names)} names for the {facts.labels} labels of {facts.path}")
    check_columns(job.columns, facts.inputs)
    if job.embeddings:
        require_embeddings(facts)
    return Options(
        facts.sha256,
        facts.provider,
        facts.runtime,
        job.top_k,
        job.on_error,
        job.row_format,
        job.level,
        float(job.threshold),
        digest_of_names(job.names),
        ",".join(f"{name}={column}" for name, column in sorted(job.columns.items())),
        facts.embeddings if job.embeddings else 0,
    )


def predictions_of(job: Job, predictor: Predictor, log: Callable[[str], None]) -> PredictionStream:
    """The predictions for the shards of `job`."""
    return PredictionStream(
        predictor,
        job.shards,
        job.top_k,
        on_error=job.on_error,
        level=job.level,
        columns=job.columns,
        embeddings=bool(job.embeddings),
        log=log,
    )


def embeddings_of(name: str, options: Options) -> EmbeddingOutput | None:
    """Where a job with these options writes its embeddings, as the user has named it. Raises what
    `scorer.outputs.embeddings.embedding_output` raises.
    """
    if not name:
        return None
    from scorer.outputs.embeddings import embedding_output

    return embedding_output(name, options.embeddings)


def open_output(
    output: str,
    key: JobKey,
    row_format: RowFormat,
    policy: ResumePolicy,
    stop: StopRequest,
    embeddings: EmbeddingOutput | None = None,
) -> AbstractContextManager[Sink]:
    """As `open_sink`; Stopped is raised where `stop` is set while a pipe has no reader."""

    def wait() -> None:
        if stop.wait(_LOOK_SECONDS):
            raise Stopped(0)

    return open_sink(output, key, row_format, policy, wait, embeddings)
