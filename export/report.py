"""What `export` shows: the graph before and after, speed against the plain export, and the gates' reports."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from export.build import Exported, TracedCheckpoint
from export.onnx_writer import node_count
from export.timing import PLAIN_EXPORT, Timing
from export.videos import VideoSample
from scorer.system.tables import format_table, paragraph, terminal_width
from train.layers import count_parameters


def show(traced: TracedCheckpoint, written: Sequence[Exported], check: VideoSample, timing: Timing | None) -> None:
    """Print what became of a checkpoint on standard output."""
    columns = terminal_width()
    lines = [traced.checkpoint.config.name, *_table(traced, written, timing, columns)]
    for note in _notes(traced, written, check):
        lines += paragraph(note, columns)
    print("\n".join(lines), flush=True)


def _table(traced: TracedCheckpoint, written: Sequence[Exported], timing: Timing | None, columns: int) -> list[str]:
    header = ["", "operators", "parameters", "FLOPs/video", "bytes", *(["videos/s", "x plain"] if timing else [])]
    rows = []
    if traced.graph:
        parameters = count_parameters(traced.model)
        size = timing.plain_bytes if timing else 4 * parameters
        row = _numbers(node_count(traced.graph), parameters, traced.graph.flops(), size)
        rows.append(["as trained", *row, *(timing.cells(PLAIN_EXPORT) if timing else [])])
    for exported in written:
        flops = traced.reduced.flops() if traced.reduced else 0
        row = _numbers(exported.nodes, exported.parameters, flops, exported.bytes)
        rows.append([exported.path.name, *row, *(timing.cells(exported.path.name) if timing else [])])
    return format_table(header, rows, columns)


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _notes(traced: TracedCheckpoint, written: Sequence[Exported], check: VideoSample) -> Iterator[str]:
    if traced.graph is None:
        yield "this model has layers without a method `trace`: it was exported plainly, by torch.onnx.export"
    else:
        yield "operators: nodes of ONNX; as trained: the network before it is reduced, written the same way"
    yield f"checked on {check.source}, alone and in batches of up to 1,024:"
    for exported in written:
        independence = exported.report["independence"]
        same = "the same bits" if independence["same_bits"] else f"within {independence['bound']:.0e}"
        too = "" if exported.device == "cpu" else f"; passed on {exported.device} too"
        yield f"{exported.path}: {_agreement(exported.report)}; in other batches {same}{too}"
        if embeddings := exported.report.get("embeddings"):
            yield f"{exported.path}: {_embeddings(embeddings)}"
    if any(exported.report.get("quality", {}).get("quality") == "not measured" for exported in written):
        yield "quality was not measured: that takes 2,000 labelled videos, given with --check"
    if any(exported.precision == "fp16" for exported in written):
        yield "fp16 is for CUDA, whose rounding was emulated: on a CPU it is no faster than fp32"


def _agreement(report: Mapping[str, Any]) -> str:
    if "pytorch" in report:
        parity = report["pytorch"]
        return f"within {parity['max_difference']:.0e} of each probability (bound {parity['bound']:.0e}), same top-10"
    quality = report.get("emulated", report["quality"])
    lines = [f"{quality['overlap']:.2%} of the top-10"]
    if quality["quality"] != "not measured":
        changes = [(name, *pair) for name, pair in quality["quality"].items() if name[:4] in ("MAP@", "GAP@")]
        lines += [f"{name} {before:.4f} -> {after:.4f}" for name, before, after in changes]
    return ", ".join(lines)


def _embeddings(report: Mapping[str, Any]) -> str:
    """How near a file's embeddings are to the checkpoint's."""
    cosine, width = report.get("cosine"), f"{report['width']:,} numbers"
    if cosine is not None:
        return f"embeddings of {width}, with a cosine of {cosine:.4f} with the checkpoint's (bound {report['bound']})"
    return f"embeddings of {width}, within {report['max_difference']:.0e} of the checkpoint's largest value"
