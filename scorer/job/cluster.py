"""One job on a Ray cluster: its predictions committed here, in order, or in part files by the workers themselves.

Committing here keeps the promises of one machine's run, as fast as one process formats and writes rows. Where a cluster
is faster than that, workers write part files to storage that all share, and only what they report comes back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from scorer.errors import BusyError
from scorer.inputs.position import Position
from scorer.job.job_array import PartReport, finished_part, own_part_path, score_part
from scorer.job.part import Part, moved_chunk, plan
from scorer.job.part_file import PartFile, refuse_unfinished
from scorer.job.run import opened_job, options_of, predictions_of
from scorer.job.spec import Job, Progress, Report, Stopped
from scorer.job.workers import Cluster, Workers, connected
from scorer.model.predictor import Predictor
from scorer.outputs.sink import Chunk, ResumePolicy
from scorer.system.signals import StopRequest

_PART_BYTES = 64 << 20  # of shards: some 14,000 videos, whose predictions are 3 MB
_FLOATS_A_VIDEO = 1_000  # about: so many more of embeddings, and parts are smaller
_PARTS_A_SLOT = 4  # at least, where there are so many shards, so that none waits long for the last
_BUSY_SECONDS, _BUSY_LOOK_SECONDS = 120.0, 0.2
"""How long a part waits for the lock of a worker that is lost, of which NFS lets go after 90 s, and between looks."""


def score_on_cluster(
    job: Job,
    predictor: Predictor,
    cluster: Cluster,
    stop: StopRequest,
    watch: Callable[[Progress], None],
    log: Callable[[str], None] = lambda line: None,
) -> Report:
    """As `scorer.job.run.score`, with the predictions made on `cluster`; `predictor` says what all nodes must have.

    Raises:
        DeviceError: no Ray, no cluster, a node with another version, model or runtime, or a part that is lost for good.
        Yt8mError: what `scorer.job.run.score` raises.
    """
    options, began = options_of(job, predictor), time.monotonic()
    with opened_job(job, options, stop) as opened, connected(cluster, log) as ray:
        writer = opened.writer
        if opened.sink.completed is None:
            times = 1 + options.embeddings // _FLOATS_A_VIDEO
            with closing(Workers(ray, replace(job, shards=(), output=""), cluster, options, log)) as workers:
                writer.write(_chunks(job, workers, writer.end, stop, times), stop, watch, job.commit_seconds)
                log(workers.summary())
        return opened.complete(began, predictor)


def _chunks(job: Job, workers: Workers, start: Position, stop: StopRequest, times: int = 1) -> Generator[Chunk]:
    """The predictions from `start` on, a bounded number of parts at a time, in order, until `stop` is set.

    times: how much smaller parts are to be, because more comes of a video.
    """
    left = job.shards[start.shard :]
    size = times * sum(shard.stat.size for shard in left)
    parts = plan(left, max(1, min(len(left), max(size // _PART_BYTES, workers.slots * _PARTS_A_SLOT))))
    todo = deque(part.shards for part in parts if part.shards)
    running: deque[tuple[int, Any]] = deque()
    first, begin = start.shard, replace(start, shard=0)
    while todo or running:
        while todo and len(running) < workers.most:
            shards = todo.popleft()
            own = replace(job, shards=shards, output="", names=None)
            running.append((len(shards), workers.start(partial(_predict, own, begin))))
            begin = Position(0, 0, 0)
        count, task = running[0]
        if workers.ready([task]):
            running.popleft()
            for chunk in workers.results(task):
                yield moved_chunk(chunk, first)
            first += count
        elif stop.is_set():
            return


def _predict(job: Job, start: Position, predictor: Predictor) -> Iterator[Chunk]:
    return predictions_of(job, predictor, lambda line: None).from_position(start)


@dataclass(frozen=True)
class PartsReport:
    """What part files on a cluster came to. parts: how many there are. kept: of these, made by an earlier run.

    scored, quarantined: records in all of them. seconds: of this run. here: videos that it scored.
    """

    parts: int
    kept: int
    scored: int
    quarantined: int
    seconds: float
    here: int


def score_parts_on_cluster(
    job: Job,
    count: int,
    predictor: Predictor,
    cluster: Cluster,
    stop: StopRequest,
    watch: Callable[[Progress], None],
    log: Callable[[str], None] = lambda line: None,
) -> PartsReport:
    """Have `count` part files of `job` made by the workers of `cluster`, as by `score_part`; `merge_files` joins them.

    The output's folder is one that all nodes share. To resume keeps finished parts of the same job, and what the others
    committed.

    Raises:
        Stopped: `stop` was set; finished parts stay, and the others can be resumed.
        Yt8mError: what `score_on_cluster` raises.
    """
    options, began = options_of(job, predictor), time.monotonic()
    parts = plan(job.shards, count)
    found = _kept(job, parts, predictor)
    done = _Done(watch)
    for index, part_file in found.items():
        done.add(parts[index], part_file.scored, part_file.quarantined)
    kept, here = done.parts, done.scored
    todo = deque(part for part in parts if part.index not in found)
    policy: ResumePolicy = "restart" if job.resume_policy == "restart" else "resume"  # a part that runs again resumes
    own = replace(job, shards=(), resume_policy=policy)
    with (
        connected(cluster, log) as ray,
        closing(Workers(ray, replace(job, shards=(), output=""), cluster, options, log)) as workers,
    ):
        for part, report in _reports(own, todo, workers, stop):
            done.add(part, report.scored, report.quarantined)
        log(workers.summary())
    if done.parts < count:
        raise Stopped(done.scored)
    return PartsReport(count, kept, done.scored, done.quarantined, time.monotonic() - began, done.scored - here)


def _reports(job: Job, todo: deque[Part], workers: Workers, stop: StopRequest) -> Iterator[tuple[Part, PartReport]]:
    """Of the parts as they are done, a bounded number at a time, until `stop` is set."""
    running: dict[Any, Part] = {}
    while todo or running:
        while todo and len(running) < workers.most:
            part = todo.popleft()
            running[workers.start(partial(_score, job, part))] = part
        for task in workers.ready([*running]):
            part = running.pop(task)
            for report in workers.results(task):
                yield part, report
        if stop.is_set():
            return


def _score(job: Job, part: Part, predictor: Predictor) -> Iterator[PartReport]:
    """The part; a lost worker may hold its lock for a while."""
    end = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            yield score_part(job, part, predictor, StopRequest(), lambda progress: None)
            return
        except BusyError:
            if time.monotonic() > end:
                raise
            time.sleep(_BUSY_LOOK_SECONDS)


def _kept(job: Job, parts: Sequence[Part], predictor: Predictor) -> dict[int, PartFile]:
    """The parts that an earlier run finished, where it is to be resumed.

    Raises ResumeError where it left parts unfinished, and nothing says what to do with them.
    """
    if job.resume_policy == "resume":
        finished = {part.index: finished_part(job, part, predictor) for part in parts}
        return {index: part for index, part in finished.items() if part is not None}
    if job.resume_policy == "refuse":
        for part in parts:
            refuse_unfinished(own_part_path(job, part))
    return {}


class _Done:
    """Counts what is done, and shows it."""

    def __init__(self, watch: Callable[[Progress], None]) -> None:
        self.parts = self.scored = self.quarantined = self._shards = self._bytes = 0
        self._watch = watch

    def add(self, part: Part, scored: int, quarantined: int) -> None:
        self.parts += 1
        self.scored += scored
        self.quarantined += quarantined
        self._shards += len(part.shards)
        self._bytes += sum(shard.stat.size for shard in part.shards)
        self._watch(Progress(self.scored, self._shards, self._bytes))
