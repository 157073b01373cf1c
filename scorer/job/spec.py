"""What a job is asked, how far it is, and what it did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scorer.inputs.records import Level
from scorer.inputs.source import Source
from scorer.job.record import CompletionRecord
from scorer.outputs.sink import ResumePolicy
from scorer.pipeline.predict import OnError


@dataclass(frozen=True)
class Job:
    """What to score and where to.

    shards: in the order of the rows.
    output: a file, a pipe or a device; "-" is standard output.
    top_k: labels per video.
    on_error: what a bad record does: end the job, or be quarantined.
    max_errors: more quarantined records than this end the job; None for no limit.
    resume_policy: what to do about an earlier run that did not finish.
    commit_seconds: work that a crash may lose.
    level: whether features are read from the records, as means of their frames, or as each record has them,
        or whether each labelled segment is scored in the place of its record.
    row_format: a name that scorer.outputs.formats.make_format knows.
    columns: of Parquet and Arrow files, feature -> column, where its name is another.
    threshold: labels of a lower confidence are not written, be there none left.
    names: of all labels, to be written beside them; None for none.
    embeddings: the file that the model's embeddings are written to, in the order of the rows; empty for none.
    """

    shards: Sequence[Source]
    output: str
    top_k: int = 10
    on_error: OnError = "fail"
    max_errors: int | None = None
    resume_policy: ResumePolicy = "refuse"
    commit_seconds: float = 1.0
    row_format: str = "pairs"
    level: Level = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    threshold: float = 0.0
    names: Sequence[str] | None = None
    embeddings: str = ""


@dataclass(frozen=True)
class Progress:
    """How far a job is: videos scored, shards done, bytes of shards done."""

    scored: int
    shards: int
    bytes: int


@dataclass(frozen=True)
class Report:
    """What a completed job did.

    record: what stands beside the output.
    quarantine_place: where the quarantined records are listed, in words.
    seconds: of this run, from the first byte read to the last rename.
    resumed: videos that an earlier run had scored.
    batch_size: as it was at the end.
    """

    record: CompletionRecord
    quarantine_place: str
    seconds: float
    resumed: int
    batch_size: int


class Stopped(Exception):
    """The job was told to stop; `scored` videos are committed (0 where the output cannot be resumed)."""

    def __init__(self, scored: int) -> None:
        super().__init__(scored)
        self.scored = scored
