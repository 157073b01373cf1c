"""What `export` shows: the graph before and after, speed against the plain export, and the gates' reports."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from export.build import Exported, Source, write
from export.onnx_writer import node_count
from export.plain import plain_export
from export.speed import measure
from export.videos import Videos
from scorer.model.model import Model

_PLAIN = "plain export"


@dataclass(frozen=True)
class Speed:
    """What was timed: videos/s by file name, the plain export's among them, and its size in bytes."""

    rates: Mapping[str, float]
    plain_bytes: int

    def cells(self, name: str) -> list[str]:
        return [f"{self.rates[name]:,.0f}", f"{self.rates[name] / self.rates[_PLAIN]:.2f}"]


def time_files(source: Source, written: Sequence[Exported], check: Videos) -> Speed:
    """Time each file against the plain export of the same checkpoint, about a second each.

    Raises OSError where the temporary folder has no room for the plain export, ModelError where there can be none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        size = write(path, plain_export(source.model, source.checkpoint.config.inputs, source.metadata))
        models = {_PLAIN: Model.open(str(path), device="cpu")}
        models |= {exported.path.name: Model.open(str(exported.path), device="cpu") for exported in written}
        return Speed(measure(models, check), size)


def show(source: Source, written: Sequence[Exported], check: Videos, speed: Speed | None) -> None:
    """Print tables on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(_graphs(source, written, speed))
    if source.before is not None:
        console.print("operators: nodes of ONNX; as trained: the network before it is reduced, written the same way")
    if source.after is None:
        console.print("export/tracing.py does not know this model's layers: it was exported plainly")
    console.print(_gates(written))
    console.print(f"checked on {check.source}, alone and in batches of up to 1,024")
    if any(exported.report.get("quality", {}).get("quality") == "not measured" for exported in written):
        console.print("quality was not measured: that takes 2,000 labelled videos, given with --check")
    if any(exported.precision == "fp16" for exported in written):
        console.print("fp16 is for CUDA: on a CPU it is no faster than fp32")


def _graphs(source: Source, written: Sequence[Exported], speed: Speed | None) -> Table:
    columns = ["", "operators", "parameters", "FLOPs/video", "bytes", *(["videos/s", "x plain"] if speed else [])]
    table = Table(*columns, title=source.checkpoint.config.name)
    for column in table.columns[1:]:
        column.justify = "right"
    before, after = source.before, source.after
    if before:
        size = speed.plain_bytes if speed else 4 * before.parameters()
        row = _numbers(node_count(before), before.parameters(), before.flops(), size)
        table.add_row("as trained", *row, *(speed.cells(_PLAIN) if speed else []))
    for exported in written:
        row = _numbers(exported.nodes, exported.parameters, after.flops() if after else 0, exported.bytes)
        table.add_row(exported.path.name, *row, *(speed.cells(exported.path.name) if speed else []))
    return table


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _gates(written: Sequence[Exported]) -> Table:
    table = Table("written", "against the checkpoint", "in other company")
    for exported in written:
        bits = exported.report["independence"]["same_bits"]
        company = "the same bits" if bits else f"within {exported.report['independence']['bound']:.0e}"
        table.add_row(str(exported.path), _agreement(exported.report), company)
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
