"""A part of a job: some shards in order, and what their predictions are, to be made anywhere and merged in order.

    for part in plan(shards, 16): ...                       # wherever: run_part(job, part, predictor) -> PartResult
    merge(results, shards, "preds.csv")                     # the bytes of one run

Whoever has an engine for many machines plans, runs `run_part` where the predictors are, and merges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain

from scorer.errors import Hint, InputError, ResumeError, UsageError
from scorer.inputs.position import Position
from scorer.inputs.source import Source
from scorer.job.record import CompletionRecord, Options, ShardRecord, digest_of_names
from scorer.job.result import PartResult
from scorer.job.run import open_output, options_of, predictions_of
from scorer.job.spec import Job, Progress, Stopped
from scorer.job.writer import JobWriter
from scorer.model.predictor import Predictor
from scorer.outputs.formats import make_format
from scorer.outputs.memory import MemorySink
from scorer.outputs.row_format import RowFormat, RowOptions
from scorer.outputs.sink import Chunk, JobKey, ResumePolicy, ShardId, shard_id
from scorer.system.signals import StopRequest


@dataclass(frozen=True)
class Part:
    """What one machine is asked: part `index` of `count`, its shards in order. job: a digest of the whole job's."""

    index: int
    count: int
    shards: tuple[Source, ...]
    job: str


def plan(shards: Sequence[Source], count: int) -> list[Part]:
    """`shards` in `count` parts, in order, of about as many bytes each; the same for the same shards, anywhere.

    Some parts are empty where there are fewer shards, or a few that outweigh the rest. Raises UsageError.
    """
    if count < 1:
        raise UsageError(f"{count} parts are too few", remedy="ask for at least one")
    sizes = [shard.stat.size or 1 for shard in shards]
    total = sum(sizes)
    middles = [2 * end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]  # doubled
    of_part: list[list[Source]] = [[] for _ in range(count)]
    for shard, middle in zip(shards, middles, strict=True):
        of_part[middle * count // (2 * total)].append(shard)
    job = job_digest(map(shard_id, shards))
    return [Part(index, count, tuple(some), job) for index, some in enumerate(of_part)]


def job_digest(shards: Iterable[ShardId]) -> str:
    """What tells the parts of one job from those of another: a digest of addresses, sizes and versions."""
    text = json.dumps([[shard.canonical, shard.stat.size, shard.stat.version] for shard in shards])
    return hashlib.sha256(text.encode()).hexdigest()


def run_part(
    job: Job,
    part: Part,
    predictor: Predictor,
    stop: StopRequest | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    log: Callable[[str], None] = lambda line: None,
) -> PartResult:
    """Predict one part of `job`, in memory. Nothing of `job` is used that is about its output.

    Raises what `scorer.job.run.score` raises.
    """
    own = replace(job, shards=part.shards)
    options = options_of(own, predictor)
    sink = MemorySink(job.top_k)
    ids = tuple(map(shard_id, part.shards))
    writer = JobWriter(sink, ids, options, job.max_errors)
    writer.write(predictions_of(own, predictor, log), stop or StopRequest(), watch, job.commit_seconds)
    shards = tuple(
        ShardRecord(shard.canonical, stat, records) for shard, (stat, records) in zip(ids, sink.finished, strict=True)
    )
    return PartResult(part.index, part.count, part.job, options, shards, sink.joined())


def merge(
    parts: Iterable[PartResult],
    shards: Sequence[ShardId],
    output: str,
    *,
    resume_policy: ResumePolicy = "refuse",
    max_errors: int | None = None,
    names: Sequence[str] | None = None,
    stop: StopRequest | None = None,
) -> CompletionRecord:
    """Write the output of a whole job from the results of its parts, in order, one in memory at a time.

    Each part is committed once it is written, so a merge that stopped can be resumed with the same results; so can
    a merge by `scorer.job.run.score`, since the work on disk is the same.

    Args:
        shards: of the whole job, in order: those that were planned.
        max_errors, resume_policy, names: as `Job` has them; the names with which the parts were run.

    Raises:
        InputError: a result that is of another job or has other options, or is missing, twice or out of order.
        Stopped: `stop` was set; what was merged is committed.
        Yt8mError: as `scorer.job.run.score` has it of outputs.
    """
    results = iter(parts)
    if (first := next(results, None)) is None:
        raise InputError("there are no parts to merge")
    ids, stop = tuple(shards), stop or StopRequest()
    row_format = _format_of(first.options, names)
    with open_output(output, JobKey(first.options.key(), ids), row_format, resume_policy, stop) as sink:
        writer = JobWriter(sink, ids, first.options, max_errors)
        if sink.completed is None:
            merger = _Merger(writer, ids, first.count, first.options)
            with writer.keeping():
                for part in chain([first], results):
                    merger.add(part)
                    if stop.is_set() and merger.missing:
                        raise Stopped(writer.scored if sink.resumable else 0)
                if merger.missing:
                    raise InputError(merger.missing, remedy="run it, and merge again")
        return writer.complete(output)


def _format_of(options: Options, names: Sequence[str] | None) -> RowFormat:
    if digest_of_names(names) != options.names_sha256:
        raise UsageError("the parts were run with other names of labels", remedy="give those")
    return make_format(options.row_format, RowOptions(options.threshold, names))


class _Merger:
    """Writes results that come in order, and looks at all of them; what is committed already is not written again."""

    def __init__(self, writer: JobWriter, shards: tuple[ShardId, ...], count: int, options: Options) -> None:
        self._writer, self._shards, self._count, self._options = writer, shards, count, options
        self._job = job_digest(shards)
        self._parts = self._read = 0  # parts and shards so far

    def add(self, part: PartResult) -> None:
        """Append and commit the next part."""
        name = f"part {part.index + 1} of {part.count}"
        own = self._shards[self._read : self._read + len(part.shards)]
        if (part.count, part.job) != (self._count, self._job):
            raise InputError(f"{name} is of another job", remedy="run it again for these shards")
        if part.options != self._options:
            raise InputError(f"{name} was run otherwise: {_difference(part.options, self._options)}")
        if part.index != self._parts:
            raise InputError(
                f"{name} comes where part {self._parts + 1} should", remedy="give each part once, in order"
            )
        if tuple(ShardId(shard.canonical, shard.stat) for shard in part.shards) != own:
            raise InputError(f"{name} has other shards than were planned for it", remedy="run it again")
        chunk = _moved(part.chunk, self._read)
        self._parts, self._read = self._parts + 1, self._read + len(part.shards)
        self._write(chunk)

    def _write(self, chunk: Chunk) -> None:
        end = self._writer.end
        if end.shard >= chunk.end.shard:
            return
        if end != Position(chunk.end.shard - len(chunk.finished), 0, 0):
            raise ResumeError("the unfinished run stopped within a part", remedy="resume it", hints=(Hint.RESTART,))
        self._writer.append(chunk)
        self._writer.commit()

    @property
    def missing(self) -> str:
        """What has not come, in words; empty where all is there."""
        if self._parts < self._count:
            return f"part {self._parts + 1} of {self._count} is missing"
        return f"the parts lack shard {self._read}" if self._read < len(self._shards) else ""


def _moved(chunk: Chunk, shards: int) -> Chunk:
    """`chunk` as it is after so many shards of the same job."""
    finished = [(index + shards, records) for index, records in chunk.finished]
    return replace(chunk, end=Position(chunk.end.shard + shards, 0, 0), finished=finished)


def _difference(one: Options, other: Options) -> str:
    ours, theirs = one.to_json(), other.to_json()
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return ", ".join(f"{name} is {ours.get(name)} and was {theirs.get(name)}" for name in names)
