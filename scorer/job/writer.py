"""The writing end of a job: predictions in, committed output and completion record out, whatever makes the predictions.

One machine's job, one part of a job, and the merging of parts all write through here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import astuple
from typing import Any

import numpy as np

from scorer.errors import Hint, NothingScoredError, OutputError, RecordError, ResumeError, UsageError, Yt8mError
from scorer.evaluation.duplicates import count_duplicates
from scorer.evaluation.metrics import Metrics, read_metrics
from scorer.inputs.batching import Quarantined
from scorer.inputs.position import BEGINNING, bytes_read
from scorer.inputs.source import FileStat
from scorer.job.record import CompletionRecord, Options, OutputFacts, ShardRecord
from scorer.job.spec import Progress, Stopped
from scorer.kernels.packed import metric_record
from scorer.outputs.sink import Chunk, Commit, ShardId, Sink
from scorer.system.signals import StopRequest


class JobWriter:
    """Appends chunks to a sink, counts, commits and completes; continues where the sink's last commit was.

    end: the next record. scored, quarantined: records so far, those of the run that is resumed included.
    """

    def __init__(
        self, sink: Sink, shards: tuple[ShardId, ...], options: Options, max_errors: int | None = None
    ) -> None:
        """max_errors: more quarantined records than this are an error; None for no limit."""
        self._sink, self._shards, self._options, self._max_errors = sink, shards, options, max_errors
        last = sink.last or Commit(BEGINNING)
        self.end, self.scored, self.quarantined = last.end, last.scored, last.quarantined
        self._bytes_lost, self._unknown_labels = last.bytes_lost, last.unknown_labels
        self._finished: list[tuple[FileStat, int]] = []  # since the last commit
        self._metrics = Metrics(options.top_k)
        if sink.completed is None:
            self._restore()

    def _restore(self) -> None:
        limit = self._max_errors
        if limit is not None and self.quarantined > limit:
            already = f"{self.quarantined:,} records are quarantined already, and {limit:,} may be"
            raise UsageError(already, hints=(Hint.MORE_ERRORS,))
        if self._sink.last is not None:
            try:
                with self._sink.kept("hits") as hits:
                    self._metrics = read_metrics(hits, self._options.top_k)
            except ValueError as error:
                raise ResumeError(f"what the metrics need is damaged: {error}", hints=(Hint.RESTART,)) from error

    def write(
        self,
        chunks: Generator[Chunk],
        stop: StopRequest,
        watch: Callable[[Progress], None],
        commit_seconds: float,
    ) -> None:
        """Append all the chunks that are still to come, from `end` on, and commit now and then.

        Raises:
            Stopped: `stop` was set; what was done is committed.
            Yt8mError: what `chunks` raises, or too many bad records; what was done is committed.
        """
        with self.keeping():
            self._write(chunks, stop, watch, commit_seconds)
        self.commit()
        if self.end.shard < len(self._shards):  # only a stop ends the chunks early without an error
            raise Stopped(self.scored if self._sink.resumable else 0)

    def _write(
        self, chunks: Generator[Chunk], stop: StopRequest, watch: Callable[[Progress], None], commit_seconds: float
    ) -> None:
        sizes = np.cumsum([0, *(shard.stat.size for shard in self._shards)]).tolist()
        due = time.monotonic() + commit_seconds
        with closing(chunks):
            for chunk in chunks:
                self.append(chunk)
                watch(Progress(self.scored, self.end.shard, bytes_read(sizes, self.end, chunk.consumed)))
                if time.monotonic() >= due:
                    self.commit()
                    due = time.monotonic() + commit_seconds
                if stop.is_set():
                    break

    def append(self, chunk: Chunk) -> None:
        """Append a chunk and count it. Raises RecordError where there are too many bad records by then."""
        self._sink.append(chunk)  # nothing may fail from here to the last count: a commit must not see one alone
        self._metrics.add(np.frombuffer(chunk.metric_records, metric_record(self._options.top_k)))
        self._finished += [(self._shards[index].stat, records) for index, records in chunk.finished]
        self.scored += len(chunk)
        self.quarantined += len(chunk.quarantined)
        self._bytes_lost += chunk.bytes_lost
        self._unknown_labels += chunk.unknown_labels
        self.end = chunk.end
        limit = self._max_errors
        if limit is not None and self.quarantined > limit and chunk.quarantined:
            bad = chunk.quarantined[-1]
            reason = f"{bad.reason}; {self.quarantined:,} records are quarantined by now, and {limit:,} may be"
            raise RecordError(bad.path, reason, record=bad.record, offset=bad.offset, hints=(Hint.MORE_ERRORS,))

    def commit(self) -> None:
        """Make what was appended last."""
        if self._sink.last is None or self._sink.last.end != self.end:
            within = self.end.offset > 0 and self.end.shard < len(self._shards)
            partial = self._shards[self.end.shard].stat if within else None
            finished = tuple(self._finished)
            counts = self.scored, self.quarantined, self._bytes_lost
            self._sink.commit(Commit(self.end, *counts, finished, partial, self._unknown_labels))
            self._finished = []

    def shard_records(self) -> tuple[ShardRecord, ...]:
        """Of all shards, which are finished and committed."""
        pairs = zip(self._shards, self._sink.finished, strict=True)
        return tuple(ShardRecord(shard.canonical, stat, records) for shard, (stat, records) in pairs)

    def complete(self, output: str) -> CompletionRecord:
        """Put the output in its place, with a record that names it `output`; everything is committed.

        Raises:
            NothingScoredError: every record was quarantined; an older output stays, and nothing of this job.
            ResumeError: a job that was resumed was complete, but its record is damaged.
        """
        if self._sink.completed is not None:
            record = self._read(output, self._sink.completed)
        elif not self.scored and self.quarantined:
            error = self._nothing_scored()
            self._sink.discard()
            raise error
        else:
            record = self._record(output)
        self._sink.complete(record.to_json())
        return record

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Commit what was appended before an error, and let it say so."""
        try:
            yield
        except OutputError:
            raise  # what could not be written cannot be committed either
        except Yt8mError as error:
            if self.scored + self.quarantined and self._sink.resumable:
                self.commit()
                error.message = f"{error.message} ({self.scored:,} videos are kept)"
                error.hints += (Hint.RESUME_LATER,)
            raise

    def _record(self, output: str) -> CompletionRecord:
        read = sum(records for _, records in self._sink.finished)
        if read != self.scored + self.quarantined:
            raise AssertionError(f"read {read} records, scored {self.scored} and quarantined {self.quarantined}")
        whole = self._sink.seal()
        with self._sink.kept("ids") as ids:
            duplicates = count_duplicates(ids, self.scored)
        return CompletionRecord(
            output=OutputFacts(os.path.basename(output), whole.length, whole.crc),
            options=self._options,
            scored=self.scored,
            quarantined=self.quarantined,
            bytes_lost=self._bytes_lost,
            duplicates=duplicates,
            metrics=self._metrics.result(),
            shards=self.shard_records(),
            unknown_labels=self._unknown_labels,
            embeddings=None if (file := self._sink.embeddings) is None else OutputFacts(file[0], *astuple(file[1])),
        )

    def _nothing_scored(self) -> NothingScoredError:
        message = f"none of the {self.quarantined:,} records could be scored"
        if self._sink.resumable:
            with self._sink.kept("quarantine") as lines:
                first = Quarantined(**json.loads(lines.readline()))
            message += f"; the first, {first.path}: record {first.record} at byte {first.offset}: {first.reason}"
        remedy = "give shards of the kind that the model reads"
        return NothingScoredError(message, remedy=remedy, hints=(Hint.OTHER_MODEL,))

    def _read(self, output: str, completed: Mapping[str, Any]) -> CompletionRecord:
        try:
            record = CompletionRecord.from_json(completed)
            if (record.scored, record.quarantined) != (self.scored, self.quarantined):
                raise ValueError("it counts otherwise")
        except ValueError as error:
            reason = f"{output} cannot be resumed: the completion record in its journal is damaged"
            raise ResumeError(reason, hints=(Hint.RESTART,)) from error
        return record
