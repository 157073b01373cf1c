"""Job arrays: one part of a job to a part file, and the part files of a job to its output."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from scorer.errors import InputError, OutputError
from scorer.job.part import Part, difference, job_digest, merge
from scorer.job.part_file import PartFacts, PartFile, open_part_file, part_path
from scorer.job.record import CompletionRecord
from scorer.job.run import options_of, predictions_of
from scorer.job.spec import Job, Progress
from scorer.job.writer import JobWriter
from scorer.model.predictor import Predictor
from scorer.outputs.formats import check_name
from scorer.outputs.paths import output_paths
from scorer.outputs.sink import ResumePolicy, ShardId, shard_id
from scorer.system.packages import version
from scorer.system.signals import StopRequest


@dataclass(frozen=True)
class PartReport:
    """What a completed part did. path: its file. resumed: videos that an earlier run had scored."""

    path: str
    scored: int
    quarantined: int
    seconds: float
    resumed: int
    batch_size: int


def score_part(
    job: Job,
    part: Part,
    predictor: Predictor,
    stop: StopRequest,
    watch: Callable[[Progress], None],
    log: Callable[[str], None] = lambda line: None,
) -> PartReport:
    """Score one part of `job` into its part file beside the job's output, or resume that; it may be done again.

    Raises what `scorer.job.run.score` raises; OutputError where the output is no file.
    """
    own = replace(job, shards=part.shards)
    shards, facts = tuple(map(shard_id, part.shards)), _facts(own, part, predictor)
    path = own_part_path(job, part)
    began = time.monotonic()
    with open_part_file(path, facts, {shard.canonical: shard.stat for shard in shards}, job.resume_policy) as sink:
        writer = JobWriter(sink, shards, facts.options, job.max_errors)
        resumed = writer.scored
        if sink.completed is None:
            chunks = predictions_of(own, predictor, log).from_position(writer.end, stop)
            writer.write(chunks, stop, watch, job.commit_seconds)
        sink.complete({"shards": [shard.to_json() for shard in writer.shard_records()], "scored": writer.scored})
    seconds = time.monotonic() - began
    return PartReport(path, writer.scored, writer.quarantined, seconds, resumed, predictor.batch_size)


def _facts(job: Job, part: Part, predictor: Predictor) -> PartFacts:
    names = None if job.names is None else tuple(job.names)
    addresses = tuple(shard.canonical for shard in part.shards)
    return PartFacts(part.index, part.count, part.job, version(), options_of(job, predictor), addresses, names)


def own_part_path(job: Job, part: Part) -> str:
    """Where `score_part` puts it. Raises OutputError where the output is no file."""
    return part_path(checked_output(job.output), part.index, part.count)


def finished_part(job: Job, part: Part, predictor: Predictor) -> PartFile | None:
    """The part file, where it is that of this very part; None where it is not."""
    try:
        found = PartFile.read(own_part_path(job, part))
    except InputError:
        return None
    shards = tuple(ShardId(shard.canonical, shard.stat) for shard in found.shards)
    same = found.facts == _facts(job, part, predictor) and shards == tuple(map(shard_id, part.shards))
    return found if same else None


def checked_output(output: str) -> str:
    """`output`, beside which part files can lie. Raises OutputError where it is no file."""
    if output_paths(output) is None:
        raise OutputError(f"{output} is no file, beside which a part could lie", remedy="name a file")
    return output


def merge_files(
    parts: Sequence[PartFile],
    output: str,
    *,
    resume_policy: ResumePolicy = "refuse",
    max_errors: int | None = None,
    stop: StopRequest | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
    embeddings: str = "",
) -> CompletionRecord:
    """Write the output of a job from its part files, as `found_parts` gives them. Raises what `merge` raises."""
    check_name(output, parts[0].facts.options.row_format)
    shards = [ShardId(shard.canonical, shard.stat) for part in parts for shard in part.shards]
    return merge(
        parts,
        shards,
        output,
        resume_policy=resume_policy,
        max_errors=max_errors,
        names=parts[0].facts.names,
        stop=stop,
        watch=watch,
        embeddings=embeddings,
    )


def found_parts(paths: Sequence[str]) -> list[PartFile]:
    """The part files at `paths`, given in whatever order, in theirs.

    Raises:
        InputError: a file that is no whole part, or is of another job than the first; parts that are missing or twice.
    """
    if not paths:
        raise InputError("there are no parts to merge")
    parts = [PartFile.read(path) for path in paths]
    for part in parts[1:]:
        if why := _foreign(part.facts, parts[0].facts):
            raise InputError(f"{part.path} does not belong to {parts[0].path}: {why}", remedy="leave one of them out")
    parts.sort(key=lambda part: part.index)
    for one, other in pairwise(parts):
        if one.index == other.index:
            raise InputError(f"{one.path} and {other.path} are the same part", remedy="leave one of them out")
    if missing := _missing([part.index for part in parts], parts[0].count):
        raise InputError(missing, remedy="run what is missing, and merge again")
    if job_digest(shard.canonical for part in parts for shard in part.shards) != parts[0].job:
        raise InputError(
            "the parts are not those of one plan: shards changed in size between their runs", remedy="run them again"
        )
    return parts


def _foreign(facts: PartFacts, first: PartFacts) -> str:
    """Why the part of `facts` is not of the job that `first` is of; empty where it is."""
    if facts.count != first.count:
        return f"it is {facts.name}, and that {first.name}"
    if facts.job != first.job:
        return "it is of other shards"
    if facts.version != first.version:
        return f"yt8m-edge {facts.version} made it, and {first.version} that"
    return difference(facts.options, first.options)


def _missing(found: Sequence[int], count: int) -> str:
    """Which of `count` parts are not among the sorted `found`, in words: parts 2 and 5-7 of 8 are missing."""
    gaps = [(low + 2, high) for low, high in pairwise([-1, *found, count]) if high > low + 1]
    if not gaps:
        return ""
    words = [str(first) if first == last else f"{first}-{last}" for first, last in gaps]
    one = len(gaps) == 1 and gaps[0][0] == gaps[0][1]
    return f"part{'' if one else 's'} {', '.join(words)} of {count} {'is' if one else 'are'} missing"
