"""`score` end to end against its peers and against the ONNX Runtime session alone, in one run.

    python -m benchmarks.score --plain PLAIN.onnx --models models/bilstm.onnx models/bilstm.int8.onnx \\
        --data '../shared/data/yt8m/*.tfrecord' --plot docs/pictures/score.png

Peers read the same shards with the plain export of the same checkpoint and write the same file; each runs in an
environment of its own, which benchmarks/environments.py makes. `--plain RUN_OR_FILE` also takes a checkpoint
(runs/bilstm/best.safetensors) and exports it plainly. Rounds alternate, so that a slow minute hits everyone; printed
are medians. Seconds run from the first byte read to the last written: importing and loading the model are left out,
which favours the peers.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import environments
from benchmarks.machine import machine
from scorer.inputs.discover import find_shards

HERE = Path(__file__).parent
ROOT = HERE.parent


@dataclass
class Contestant:
    """One row: who scores with which model; rates in videos/s, one a round, and the best resident rate (0: unknown)."""

    name: str
    script: str
    python: Path
    model: Path
    rates: list[float] = field(default_factory=list)
    ceilings: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    quality: float = 0.0

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def ceiling(self) -> float:
        return statistics.median(self.ceilings) if self.ceilings else 0.0


def run(python: Path, script: str, arguments: list[str]) -> tuple[dict[str, float], int]:
    """A peer program's one line of JSON, and its peak memory in bytes. Raises SystemExit with what it said."""
    command = [str(python), str(HERE / "peers" / f"run_{script}.py"), *arguments]
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as complaints:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)} if python == Path(sys.executable) else None
        process = subprocess.Popen(command, stdout=said, stderr=complaints, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        complaints.seek(0)
        if status:
            raise SystemExit(f"{script} failed:\n{complaints.read()}")
        return json.loads(said.read().splitlines()[-1]), usage.ru_maxrss * 1024


def contestants(plain: Path, models: list[Path], peers: list[str]) -> list[Contestant]:
    ours = Path(sys.executable)
    rows = [Contestant(environments.PEERS[name], name, environments.peer(name), plain) for name in peers]
    return rows + [Contestant("yt8m-edge", "ours", ours, model) for model in [plain, *models]]


def measure(rows: list[Contestant], shards: list[str], rounds: int, threads: int) -> None:
    """Fill in the rows, round by round."""
    truth = dict(true_labels(shards))
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for row in rows:
                output = str(Path(folder) / "preds.csv")
                given = ["--model", str(row.model), "--threads", str(threads), "-o", output, *shards]
                result, peak = run(row.python, row.script, given)
                row.rates.append(result["videos"] / result["seconds"])
                row.peak_bytes = max(row.peak_bytes, peak)
                if not number:
                    row.quality = map_at_10(Path(output), truth)
                if row.script == "ours":
                    rates, _ = run(row.python, "session", given)
                    row.ceilings.append(max(rates.values()))
                print(f"round {number + 1}: {row.name}, {row.model.name}: {row.rates[-1]:,.0f}", file=sys.stderr)


def true_labels(shards: list[str]) -> Iterator[tuple[str, set[int]]]:
    from scorer.inputs.batching import batches
    from scorer.inputs.records import Schema

    for batch in batches(find_shards(shards), Schema({}), 4096):
        splits = batch.label_splits
        for row, name in enumerate(batch.ids):
            yield name.decode(), set(batch.label_values[splits[row] : splits[row + 1]].tolist())
        batch.release()


def map_at_10(predictions: Path, truth: dict[str, set[int]]) -> float:
    """The report's MAP@10 from a predictions file: per video the precisions at its hits, over min(positives, 10)."""
    places, total = np.arange(1, 11), 0.0
    with predictions.open(newline="") as file:
        rows = csv.reader(file)
        next(rows)
        for name, pairs in rows:
            hits = np.array([int(label) in truth[name] for label in pairs.split()[::2]])
            total += (hits * hits.cumsum() / places[: len(hits)]).sum() / max(1, min(len(truth[name]), 10))
    return total / len(truth)


def table(rows: list[Contestant], videos: int) -> Table:
    made = Table(title=f"{videos:,} videos, {machine()}", title_justify="left")
    for heading in ("who", "model", "videos/s", "range", "times the first", "of the session", "MAP@10", "peak memory"):
        made.add_column(heading, justify="left" if heading in ("who", "model") else "right")
    for row in rows:
        ceiling = f"{row.rate / row.ceiling:.1%} of {row.ceiling:,.0f}" if row.ceiling else ""
        spread = f"{min(row.rates):,.0f}-{max(row.rates):,.0f}"
        made.add_row(
            row.name, row.model.name, f"{row.rate:,.0f}", spread, f"{row.rate / rows[0].rate:.2f}",
            ceiling, f"{row.quality:.4f}", f"{row.peak_bytes / 1e6:,.0f} MB",
        )  # fmt: skip
    return made


def plot(rows: list[Contestant], path: Path) -> None:
    """Bars of videos/s, with the session's own rate as a mark behind each of ours."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.5 * len(rows) + 1.2), layout="constrained")
    names = [f"{row.name}\n{row.model.name}" for row in rows]
    axes.barh(names, [row.rate for row in rows], color=["C0" if row.script == "ours" else "0.6" for row in rows])
    for place, row in enumerate(rows):
        if row.ceiling:
            axes.plot([row.ceiling] * 2, [place - 0.45, place + 0.45], color="k", label="the session alone")
        axes.annotate(f"  {row.rate:,.0f}", (max(row.rate, row.ceiling), place), va="center", ha="left", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("videos/s, end to end")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.tick_params(axis="y", labelsize=8)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[:1], labels[:1], loc="upper right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def plain_file(given: Path, folder: str) -> Path:
    """`given` if it is an ONNX file, else what torch.onnx.export makes of that checkpoint."""
    if given.suffix == ".onnx":
        return given
    import onnx

    from export.plain import plain_export
    from train.checkpoint import load

    checkpoint = load(given)
    config = checkpoint.config
    metadata = {"yt8m.format": "1", "yt8m.labels": str(config.labels)}
    made = Path(folder) / f"{config.name}.plain.onnx"
    onnx.save(plain_export(checkpoint.model(), config.inputs, metadata), made)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", type=Path, required=True, help="plain export, or the checkpoint to export plainly")
    parser.add_argument("--models", type=Path, nargs="*", default=[], help="our exports of the same checkpoint")
    parser.add_argument("--data", nargs="+", default=["../shared/data/yt8m/*.tfrecord"], metavar="SHARD")
    parser.add_argument("--peers", nargs="*", choices=environments.PEERS, default=list(environments.PEERS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    shards = [shard.canonical for shard in find_shards(options.data)]
    with tempfile.TemporaryDirectory() as folder:
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:  # torch here would count as everyone's peak memory
            plain = pool.submit(plain_file, options.plain, folder).result()
        rows = contestants(plain, options.models, options.peers)
        measure(rows, shards, options.rounds, options.threads)
    Console(width=160).print(table(rows, sum(1 for _ in true_labels(shards))))
    if options.plot:
        plot(rows, options.plot)


if __name__ == "__main__":
    main()
