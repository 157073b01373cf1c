"""What `export` shows: the graph before and after, speed against the plain export, and the gates' reports."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from export.build import Exported, TracedCheckpoint
from export.onnx_writer import node_count
from export.timing import PLAIN, Timing
from export.videos import VideoSample


def show(traced: TracedCheckpoint, written: Sequence[Exported], check: VideoSample, timing: Timing | None) -> None:
    """Print tables on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(_graphs(traced, written, timing))
    if traced.graph is not None:
        console.print("operators: nodes of ONNX; as trained: the network before it is reduced, written the same way")
    if traced.reduced is None:
        console.print("this model has layers without a method `trace`: it was exported plainly, by torch.onnx.export")
    console.print(_gates(written))
    console.print(f"checked on {check.source}, alone and in batches of up to 1,024")
    if any(exported.report.get("quality", {}).get("quality") == "not measured" for exported in written):
        console.print("quality was not measured: that takes 2,000 labelled videos, given with --check")
    if any(exported.precision == "fp16" for exported in written):
        console.print("fp16 is for CUDA: on a CPU it is no faster than fp32")


def _graphs(traced: TracedCheckpoint, written: Sequence[Exported], timing: Timing | None) -> Table:
    columns = ["", "operators", "parameters", "FLOPs/video", "bytes", *(["videos/s", "x plain"] if timing else [])]
    table = Table(*columns, title=traced.checkpoint.config.name)
    for column in table.columns[1:]:
        column.justify = "right"
    before, after = traced.graph, traced.reduced
    if before:
        size = timing.plain_bytes if timing else 4 * before.parameters()
        row = _numbers(node_count(before), before.parameters(), before.flops(), size)
        table.add_row("as trained", *row, *(timing.cells(PLAIN) if timing else []))
    for exported in written:
        row = _numbers(exported.nodes, exported.parameters, after.flops() if after else 0, exported.bytes)
        table.add_row(exported.path.name, *row, *(timing.cells(exported.path.name) if timing else []))
    return table


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _gates(written: Sequence[Exported]) -> Table:
    table = Table("written", "against the checkpoint", "in other batches")
    for exported in written:
        bits = exported.report["independence"]["same_bits"]
        others = "the same bits" if bits else f"within {exported.report['independence']['bound']:.0e}"
        table.add_row(str(exported.path), _agreement(exported.report), others)
    return table


def _agreement(report: Mapping[str, Any]) -> str:
    if "pytorch" in report:
        parity = report["pytorch"]
        return f"within {parity['max_difference']:.0e} of each probability (bound {parity['bound']:.0e}), same top-10"
    quality = report["quality"]
    lines = [f"{quality['overlap']:.2%} of the top-10"]
    if quality["quality"] != "not measured":
        changes = [(name, *pair) for name, pair in quality["quality"].items() if name[:4] in ("MAP@", "GAP@")]
        lines += [f"{name} {before:.4f} -> {after:.4f}" for name, before, after in changes]
    return ", ".join(lines)
