"""What `score` says at its end: the model, the speed, what became of every record, and the metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scorer.system.terminal import print_lines

if TYPE_CHECKING:
    from scorer.job.record import CompletionRecord
    from scorer.job.spec import Report
    from scorer.model.model import Model


def print_summary(report: Report, model: Model, origin: str, output: str) -> None:
    """Print what a job did on standard error, a line for each thing; `origin` says where the model came from."""
    record = report.record
    here = record.scored - report.resumed
    rate = f"{here / report.seconds:,.0f} videos/s" if report.seconds else ""
    lines = [
        ("model", f"{model.facts.path} ({origin})"),
        ("device", f"{model.facts.device}, {model.facts.provider}: {model.facts.reason}"),
        ("speed", f"{here:,} videos in {report.seconds:.1f} s, {rate}, {_how(report)}"),
        ("records", _counts(record)),
    ]
    lines += [("note", note) for note in model.notes]
    if report.resumed:
        lines.append(("resumed", f"after {report.resumed:,} videos of an earlier run"))
    if record.metrics:
        lines.append(("quality", "  ".join(f"{name} {value:.4f}" for name, value in record.metrics.items())))
    if record.unknown_labels:
        known = f"the {model.facts.labels:,} labels of the model"
        lines.append(("note", f"{record.unknown_labels:,} true labels are none of {known}: another vocabulary?"))
    lines.append(("written", f"{output} ({record.output.bytes:,} bytes)"))
    if record.quarantined:
        lines.append(("quarantined", f"listed {report.quarantine_place}, {record.bytes_lost:,} bytes lost with them"))
    print_lines(lines)


def _how(report: Report) -> str:
    workers = f", {report.workers} decoding processes" if report.workers else ""
    return f"batches of {report.batch_size:,}{workers}"


def _counts(record: CompletionRecord) -> str:
    text = f"{record.read:,} read = {record.scored:,} scored + {record.quarantined:,} quarantined"
    return text + (f"; {record.duplicates:,} rows repeat an id" if record.duplicates else "")
