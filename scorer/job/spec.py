"""What a job is asked, how far it is, and what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scorer.inputs.source import Source
from scorer.outputs.sink import ResumePolicy
from scorer.pipeline.predict import OnError


@dataclass(frozen=True)
class Job:
    """What to score and where to.

    shards: in the order of the rows.
    output: a file, a pipe or a device; "-" is standard output.
    top_k: labels per video.
    workers: decoding processes; None to start them only when the model outruns the decoder.
    on_error: what a bad record does: end the job, or be set aside.
    max_errors: more records set aside than this end the job; None for no limit.
    leftovers: what to do about an earlier run that did not finish.
    commit_seconds: work that a crash may lose.
    """

    shards: Sequence[Source]
    output: str
    top_k: int = 10
    workers: int | None = None
    on_error: OnError = "fail"
    max_errors: int | None = None
    leftovers: ResumePolicy = "refuse"
    commit_seconds: float = 1.0


@dataclass(frozen=True)
class Progress:
    """How far a job is: videos scored, shards done, bytes of shards done."""

    scored: int
    shards: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """What a completed job did.

    record: what stands in the completion record beside the output.
    seconds: of this run, from the first byte read to the last rename.
    resumed: videos that an earlier run had scored.
    batch_size, workers: as they were at the end.
    """

    record: dict[str, Any]
    seconds: float
    resumed: int
    batch_size: int
    workers: int


class Stopped(Exception):
    """The job was told to stop; `scored` videos are committed (0 where the output cannot be resumed)."""

    def __init__(self, scored: int) -> None:
        super().__init__(scored)
        self.scored = scored
