"""Many runs of `train`, and what they come to: seeds side by side, or MAP@10 against the number of training videos.

    python -m benchmarks.runs seeds --out runs/seeds
    python -m benchmarks.runs curve --out runs/curve --plot docs/pictures/learning_curve.png
    python -m benchmarks.runs curve --out runs/curve --model lstm -- --set mixup=0.2

What stands after -- is handed to `train`. Every figure is that of a run's last epoch: its best one is picked on the
very videos that judge. A second call resumes: finished runs stand.

The learning curve trains on the first shards that hold 5,000, 10,000 and 20,000 videos, and on all, each with the
model's own recipe. Its epochs grow as the root of how many times fewer the videos are: with as many epochs small sets
would have too few steps to learn in, and with as many steps they would be seen so often that they are learned by heart.
A line through MAP@10 against the logarithm of the number of videos, and the slope of the last step alone, say what
more videos would bring at that pace.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import processor
from benchmarks.split import add_split
from scorer.errors import Yt8mError
from scorer.inputs.discover import find_shards
from scorer.inputs.position import BEGINNING
from scorer.inputs.readers import decoded_blocks
from scorer.inputs.records import Schema
from scorer.inputs.source import Source
from train.layers import count_parameters
from train.registry import build, config_from_json, names, spec

MEASURES = ("MAP@10", "GAP@20", "Hit@1", "PERR")
REPORTS_VIDEOS = 230_000


@dataclass
class TrainedRun:
    """A finished run: its last epoch's record, its parameters."""

    last: dict[str, float]
    parameters: int


def train(options: argparse.Namespace, models: Sequence[str], shards: Sequence[str], folder: Path, *more: str) -> None:
    """Run the command `train`, which resumes where an earlier call stopped. Raises SystemExit when it fails."""
    command = [sys.executable, "-m", "train", "--model", *models, "--data", *shards, "--valid", *options.valid]
    command += ["--runs", str(folder), "--resume", *more, *options.more]
    status = subprocess.run(command, stdout=subprocess.DEVNULL).returncode
    if status:
        raise SystemExit(status)


def read(folder: Path) -> TrainedRun:
    """What a run left."""
    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        model = build(config_from_json(json.dumps(config["model"])))
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return TrainedRun(last, count_parameters(model))


def seeds(options: argparse.Namespace) -> None:
    """Each model with each seed; mean and largest distance from it."""
    for seed in options.seeds:
        train(options, options.model, options.data, options.out / f"seed{seed}", "--seed", str(seed))
    made = Table(title=f"seeds {options.seeds}, {processor()}", title_justify="left")
    made.add_column("model")
    for name in (*MEASURES, "parameters", "epochs", "seconds"):
        made.add_column(name, justify="right")
    for model in options.model:
        runs = [read(options.out / f"seed{seed}" / model) for seed in options.seeds]
        measures = (spread([run.last[name] for run in runs]) for name in MEASURES)
        seconds = statistics.median(run.last["seconds"] for run in runs)
        made.add_row(model, *measures, f"{runs[0].parameters:,}", f"{runs[0].last['epoch']:.0f}", f"{seconds:,.0f}")
    Console(width=None if sys.stdout.isatty() else 140).print(made)


def spread(values: Sequence[float]) -> str:
    """The mean, and how far the farthest is from it."""
    mean = statistics.fmean(values)
    return f"{mean:.4f} ± {max(abs(value - mean) for value in values):.4f}"


def curve(options: argparse.Namespace) -> None:
    """Each model on the first so many videos."""
    shards = find_shards(options.data)
    counts = np.cumsum([videos_in(shard) for shard in shards])
    ends = [int(np.searchsorted(counts, wanted)) + 1 for wanted in options.videos if wanted < counts[-1]]
    points: dict[str, list[tuple[int, float]]] = {}
    for model in options.model:
        for end in [*ends, len(shards)]:
            epochs = round(spec(model).recipe[1].epochs * math.sqrt(counts[-1] / counts[end - 1]))
            folder = options.out / f"{end}shards"
            train(options, [model], [shard.address for shard in shards[:end]], folder, "--epochs", str(epochs))
            points.setdefault(model, []).append((int(counts[end - 1]), read(folder / model).last["MAP@10"]))
    made = Table(title=f"MAP@10 by training videos, {processor()}", title_justify="left")
    made.add_column("model")
    for videos, _ in points[options.model[0]]:
        made.add_column(f"{videos:,}", justify="right")
    made.add_column("a doubling", justify="right")
    made.add_column(f"{REPORTS_VIDEOS:,} by the line / by the last slope", justify="right")
    for model, seen in points.items():
        line, last = fit(seen), fit(seen[-2:])
        far = f"{line.at(REPORTS_VIDEOS):.4f} / {last.at(REPORTS_VIDEOS):.4f}"
        made.add_row(model, *(f"{quality:.4f}" for _, quality in seen), f"{line.slope:+.4f}", far)
    Console(width=None if sys.stdout.isatty() else 140).print(made)
    if options.plot:
        plot(points, options.plot)


def videos_in(source: Source) -> int:
    """Number of a shard's records."""
    return sum(len(block) for block in decoded_blocks([(0, source)], Schema({}), BEGINNING))


@dataclass
class Line:
    """quality = start + slope * log2(videos)."""

    start: float
    slope: float

    def at(self, videos: float) -> float:
        return self.start + self.slope * math.log2(videos)


def fit(points: Sequence[tuple[int, float]]) -> Line:
    """The line of least squares through (videos, quality)."""
    videos, quality = zip(*points, strict=True)
    slope, start = np.polyfit(np.log2(videos), quality, 1)
    return Line(float(start), float(slope))


def plot(points: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Points, the line through all, and the last slope, as far as the report's number of videos."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, (model, seen) in enumerate(points.items()):
        ends, line, last = [seen[0][0], REPORTS_VIDEOS], fit(seen), fit(seen[-2:])
        axes.plot(*zip(*seen, strict=True), "o", color=f"C{place}", label=model)
        axes.plot(ends, [line.at(videos) for videos in ends], "--", color=f"C{place}", linewidth=1)
        tail = [seen[-1][0], REPORTS_VIDEOS]
        axes.plot(tail, [last.at(videos) for videos in tail], ":", color=f"C{place}", linewidth=1)
    axes.axvline(REPORTS_VIDEOS, color="0.6", linewidth=1)
    axes.set(title="broken: the line through all; dotted: the last slope", xlabel="training videos", ylabel="MAP@10")
    axes.set_xscale("log", base=2)
    ticks = [videos for videos, _ in next(iter(points.values()))] + [REPORTS_VIDEOS]
    axes.set_xticks(ticks, [f"{videos:,}" for videos in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True, metavar="seeds|curve")
    for run in (seeds, curve):
        part = parts.add_parser(run.__name__, help=run.__doc__)
        part.set_defaults(run=run)
        add_split(part, "runs")
        part.add_argument("--model", nargs="+", choices=names(), default=list(names()))
        if run is seeds:
            part.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        else:
            part.add_argument("--videos", nargs="+", type=int, default=[5_000, 10_000, 20_000])
            part.add_argument("--plot", type=Path)
    return parser


def main() -> int:
    arguments = sys.argv[1:]
    own = arguments.index("--") if "--" in arguments else len(arguments)
    options = _parser().parse_args(arguments[:own])
    options.more = arguments[own + 1 :]
    try:
        options.run(options)
    except Yt8mError as error:
        print(f"benchmarks.runs: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
