"""A part of a job: some shards in order, and what their predictions are, to be made anywhere and merged in order.

    for part in plan(shards, 16): ...                       # wherever: run_part(job, part, predictor) -> PartResult
    merge(results, shards, "preds.csv")                     # the bytes of one run

Whoever has an engine for many machines plans, runs `run_part` where the predictors are, and merges.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Protocol

from scorer.errors import Hint, InputError, ResumeError, UsageError
from scorer.inputs.position import Position
from scorer.inputs.source import Source
from scorer.job.record import CompletionRecord, Options, ShardRecord, digest_of_names
from scorer.job.result import PartResult
from scorer.job.run import embeddings_of, open_output, options_of, predictions_of
from scorer.job.spec import Job, Progress
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
    job = job_digest(shard.canonical for shard in shards)
    return [Part(index, count, tuple(some), job) for index, some in enumerate(of_part)]


def job_digest(addresses: Iterable[str]) -> str:
    """What tells the parts of one job from those of another: a digest of its shards' addresses, which hold anywhere.

    Not of sizes and versions: a shard that is repaired costs its own part, not all.
    """
    return hashlib.sha256(json.dumps([*addresses]).encode()).hexdigest()


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
    writer = JobWriter(sink, tuple(map(shard_id, part.shards)), options, job.max_errors)
    stop = stop or StopRequest()
    chunks = predictions_of(own, predictor, log).from_position(writer.end, stop)
    writer.write(chunks, stop, watch, job.commit_seconds)
    return PartResult(part.index, part.count, part.job, options, writer.shard_records(), sink.joined())


class MadePart(Protocol):
    """A part that was predicted: a `PartResult`, or a part file (scorer/job/part_file.py)."""

    @property
    def index(self) -> int: ...

    @property
    def count(self) -> int: ...

    @property
    def job(self) -> str: ...

    @property
    def options(self) -> Options: ...

    @property
    def shards(self) -> tuple[ShardRecord, ...]: ...

    def chunks(self) -> Iterator[Chunk]:
        """Its predictions in order; shards count from the part's own first. Raises InputError where it is damaged."""


def merge(
    parts: Iterable[MadePart],
    shards: Sequence[ShardId],
    output: str,
    *,
    resume_policy: ResumePolicy = "refuse",
    max_errors: int | None = None,
    names: Sequence[str] | None = None,
    stop: StopRequest | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    commit_seconds: float = 1.0,
    embeddings: str = "",
) -> CompletionRecord:
    """Write the output of a whole job from its parts, in order, one chunk in memory at a time.

    It commits now and then, so a merge that stopped can be resumed with the same parts; so can a merge by
    `scorer.job.run.score`, since the work on disk is the same.

    Args:
        shards: of the whole job, in order: those that were planned.
        max_errors, resume_policy, commit_seconds: as `Job` has them. stop, watch: as of `scorer.job.run.score`.
        names: as `Job` has them; those with which the parts were run.
        embeddings: the file for those of the parts, as `Job` has it; given where the parts have them, and only there.

    Raises:
        InputError: a part that is of another job or has other options, or is missing, twice or out of order.
        Stopped: `stop` was set; what was merged is committed.
        Yt8mError: as `scorer.job.run.score` has it of outputs.
    """
    results = iter(parts)
    if (first := next(results, None)) is None:
        raise InputError("there are no parts to merge")
    ids, stop, options = tuple(shards), stop or StopRequest(), first.options
    row_format = _format_of(options, names)
    if bool(embeddings) != bool(options.embeddings):
        have = "have embeddings too" if options.embeddings else "were run without embeddings"
        remedy = "name a file for them" if options.embeddings else "run them with these, or name no file for them"
        raise UsageError(f"the parts {have}", remedy=remedy, hints=(Hint.EMBEDDINGS,) if options.embeddings else ())
    own = embeddings_of(embeddings, options)
    with open_output(output, JobKey(options.key(), ids), row_format, resume_policy, stop, own) as sink:
        writer = JobWriter(sink, ids, options, max_errors)
        if sink.completed is None:
            merger = _Merger(writer, ids, first.count, options)
            writer.write(merger.chunks(chain([first], results)), stop, watch, commit_seconds)
        return writer.complete(output)


def _format_of(options: Options, names: Sequence[str] | None) -> RowFormat:
    if digest_of_names(names) != options.names_sha256:
        raise UsageError("the parts were run with other names of labels", remedy="give those")
    return make_format(options.row_format, RowOptions(options.threshold, names))


class _Merger:
    """Chunks of parts that come in order, as chunks of the whole job; those that are committed are left out."""

    def __init__(self, writer: JobWriter, shards: tuple[ShardId, ...], count: int, options: Options) -> None:
        self._writer, self._shards, self._count, self._options = writer, shards, count, options
        self._job = job_digest(shard.canonical for shard in shards)
        self._parts = self._read = 0  # parts and shards so far

    def chunks(self, parts: Iterable[MadePart]) -> Generator[Chunk]:
        for part in parts:
            self._check(part)
            yield from self._left(part)
            self._parts, self._read = self._parts + 1, self._read + len(part.shards)
        if self._parts < self._count:
            raise InputError(f"part {self._parts + 1} of {self._count} is missing", remedy="run it, and merge again")
        if self._read < len(self._shards):
            raise InputError(f"the parts lack shard {self._read}", remedy="run them again")

    def _check(self, part: MadePart) -> None:
        name = f"part {part.index + 1} of {part.count}"
        own = self._shards[self._read : self._read + len(part.shards)]
        if (part.count, part.job) != (self._count, self._job):
            raise InputError(f"{name} is of another job", remedy="run it again for these shards")
        if part.options != self._options:
            raise InputError(f"{name} was run otherwise: {difference(part.options, self._options)}")
        if part.index != self._parts:
            raise InputError(
                f"{name} comes where part {self._parts + 1} should", remedy="give each part once, in order"
            )
        if tuple(ShardId(shard.canonical, shard.stat) for shard in part.shards) != own:
            raise InputError(f"{name} has other shards than were planned for it", remedy="run it again")

    def _left(self, part: MadePart) -> Iterator[Chunk]:
        """The chunks of `part` that are not committed."""
        start = Position(self._read, 0, 0)
        for chunk in part.chunks():
            moved, done = moved_chunk(chunk, self._read), self._writer.end
            if _order(moved.end) > _order(done):
                if start != done:
                    raise ResumeError(
                        "the unfinished run stopped within a part", remedy="resume it", hints=(Hint.RESTART,)
                    )
                yield moved
            start = moved.end


def _order(position: Position) -> tuple[int, int]:
    return position.shard, position.record


def moved_chunk(chunk: Chunk, shards: int) -> Chunk:
    """`chunk` as it is after so many shards of the same job."""
    finished = [(index + shards, records) for index, records in chunk.finished]
    return replace(chunk, end=replace(chunk.end, shard=chunk.end.shard + shards), finished=finished)


def difference(one: Options, other: Options) -> str:
    """What differs between the two, in words."""
    ours, theirs = one.to_json(), other.to_json()
    names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    return ", ".join(f"{name} is {ours.get(name)} and was {theirs.get(name)}" for name in names)
