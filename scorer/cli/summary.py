"""What `score` says at its end: the model, the speed, what became of every record, and the metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorer.system.terminal import print_lines

if TYPE_CHECKING:
    from scorer.job.cluster import PartsReport
    from scorer.job.job_array import PartReport
    from scorer.job.record import CompletionRecord
    from scorer.job.spec import Report
    from scorer.model.model import Model


def print_summary(report: Report, model: Model, origin: str, output: str) -> None:
    """Print what a job did on standard error, a line for each thing; `origin` says where the model came from."""
    record = report.record
    lines = _run_lines(report, record.scored, model, origin, _counts(record))
    if record.metrics:
        lines.append(("quality", _quality(record)))
    if record.unknown_labels:
        known = f"the {model.facts.labels:,} labels of the model"
        lines.append(("note", f"{record.unknown_labels:,} true labels are none of {known}: another vocabulary?"))
    lines += _written(record, output)
    if record.quarantined:
        lines.append(("quarantined", f"listed {report.quarantine_place}, {record.bytes_lost:,} bytes lost with them"))
    print_lines(lines)


def print_part_summary(report: PartReport, model: Model, origin: str) -> None:
    """As `print_summary`, of one part of a job."""
    lines = _run_lines(report, report.scored, model, origin, _count(report.scored, report.quarantined))
    print_lines([*lines, ("written", f"{report.path}; yt8m merge joins the parts")])


def print_parts_summary(report: PartsReport, model: Model, origin: str, output: str) -> None:
    """As `print_summary`, of the part files that a cluster wrote."""
    lines = [
        ("model", f"{model.facts.path} ({origin})"),
        ("speed", _speed(report.here, report.seconds)),
        ("records", _count(report.scored, report.quarantined)),
    ]
    if report.kept:
        lines.append(("resumed", f"{report.kept:,} parts of an earlier run are kept"))
    print_lines([*lines, ("written", f"{output}.part-*-of-{report.parts}; yt8m merge joins the parts")])


def print_merge_summary(record: CompletionRecord, output: str) -> None:
    """What a merge wrote."""
    lines = [("records", _counts(record))]
    if record.metrics:
        lines.append(("quality", _quality(record)))
    if record.unknown_labels:
        lines.append(("note", f"{record.unknown_labels:,} true labels are none of the model's: another vocabulary?"))
    print_lines([*lines, *_written(record, output)])


def _run_lines(
    report: Report | PartReport, scored: int, model: Model, origin: str, records: str
) -> list[tuple[str, str]]:
    """Of a run on this machine. scored: videos, those of an earlier run included. records: what became of each."""
    lines = [
        ("model", f"{model.facts.path} ({origin})"),
        ("device", f"{model.facts.device}, {model.facts.provider}: {model.facts.reason}"),
        ("speed", f"{_speed(scored - report.resumed, report.seconds)}, batches of {report.batch_size:,}"),
        ("records", records),
        *(("note", note) for note in model.notes),
    ]
    if report.resumed:
        lines.append(("resumed", f"after {report.resumed:,} videos of an earlier run"))
    return lines


def _speed(videos: int, seconds: float) -> str:
    rate = f", {videos / seconds:,.0f} videos/s" if seconds else ""
    return f"{videos:,} videos in {seconds:.1f} s{rate}"


def _written(record: CompletionRecord, output: str) -> list[tuple[str, str]]:
    lines = [("written", f"{output} ({record.output.bytes:,} bytes)")]
    if record.embeddings is not None:
        width, size = record.options.embeddings, record.embeddings.bytes
        lines.append(("embeddings", f"{record.embeddings.name} ({size:,} bytes), {width:,} numbers a video"))
    return lines


def _quality(record: CompletionRecord) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())


def _counts(record: CompletionRecord) -> str:
    return _count(record.scored, record.quarantined) + (
        f"; {record.duplicates:,} rows repeat an id" if record.duplicates else ""
    )


def _count(scored: int, quarantined: int) -> str:
    return f"{scored + quarantined:,} read = {scored:,} scored + {quarantined:,} quarantined"
