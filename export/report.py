"""What `export` shows: the graph before and after, the gates' reports, and the speed against the plain export."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from export.build import Exported, Source, write
from export.plain import plain_export
from export.speed import measure
from export.videos import Videos
from scorer.model import Model


def show(source: Source, written: Sequence[Exported], check: Videos, *, speed: bool) -> None:
    """Print tables on standard output."""
    console = Console()
    console.print(_graph_table(source, written))
    if source.after is None:
        console.print("no rule of the exporter reads this model: it was exported plainly")
    for exported in written:
        console.print(f"{exported.path}: {_gates(exported)}", highlight=False)
    if speed:
        for line in _speed_lines(source, written, check):
            console.print(line, highlight=False)


def _graph_table(source: Source, written: Sequence[Exported]) -> Table:
    table = Table("", "operators", "parameters", "FLOPs/video", "bytes", title=source.checkpoint.config.name)
    for column in table.columns[1:]:
        column.justify = "right"
    before, after = source.before, source.after
    if before:
        table.add_row(
            "checkpoint", *_numbers(len(before.ops), before.parameters(), before.flops(), 4 * before.parameters())
        )
    for exported in written:
        flops = after.flops() if after else 0
        table.add_row(exported.path.name, *_numbers(exported.nodes, exported.parameters, flops, exported.bytes))
    return table


def _numbers(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _gates(exported: Exported) -> str:
    report = exported.report
    texts = []
    if "pytorch" in report:
        parity = report["pytorch"]
        texts.append(f"within {parity['max_difference']:.0e} of PyTorch (bound {parity['bound']:.0e}), batches of "
                     f"{', '.join(map(str, parity['batches']))}, {parity['videos']}")  # fmt: skip
    if "quality" in report:
        texts.append(_quality(report["quality"]))
    if exported.precision == "fp16":
        texts.append("for CUDA: on a CPU it is no faster than fp32")
    bits = "the same bits" if report["independence"]["same_bits"] else "the same answers"
    texts.append(f"{bits} alone and in company")
    return "; ".join(texts)


def _quality(quality: dict) -> str:
    overlap = f"{quality['overlap']:.2%} of the top-10 kept on {quality['videos']}"
    if quality["quality"] == "not measured":
        return f"{overlap}; quality was not measured: --check had too few labelled videos"
    changes = ", ".join(f"{name} {before:.4f} -> {after:.4f}" for name, (before, after) in quality["quality"].items())
    return f"{overlap}; {changes}"


def _speed_lines(source: Source, written: Sequence[Exported], check: Videos) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        write(path, plain_export(source.model, source.checkpoint.config.inputs, source.metadata))
        models = {"plain export": Model.open(str(path), device="cpu")}
        models |= {str(exported.path): Model.open(str(exported.path), device="cpu") for exported in written}
        rates = measure(models, check)
    plain = rates["plain export"]
    return [f"{name}: {rate:,.0f} videos/s, {rate / plain:.2f} x the plain export" for name, rate in rates.items()]
