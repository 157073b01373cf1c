"""How batch size and threads change the speed of `score`, one at a time around its own choice.

    python -m benchmarks.sweep --model models/bilstm.int8.onnx --data '../shared/data/yt8m/*.tfrecord'

Every point is the whole job, from the first byte read to the last rename; rounds alternate, printed are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from scorer.inputs.discover import find_shards
from scorer.inputs.source import Source
from scorer.job.run import score
from scorer.job.spec import Job
from scorer.model.model import Model
from scorer.system.cores import usable_cores
from scorer.system.signals import StopRequest

BATCHES = (64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class Point:
    """One setting; None is the scorer's own choice."""

    batch_size: int | None = None
    threads: int | None = None

    def __str__(self) -> str:
        given = [f"{name} {value}" for name, value in vars(self).items() if value is not None]
        return ", ".join(given).replace("_", " ") or "its own choice"


def points(threads: list[int]) -> list[Point]:
    own = Point()
    return [
        own,
        *(replace(own, batch_size=size) for size in BATCHES),
        *(replace(own, threads=count) for count in threads),
    ]


def rate(path: str, shards: list[Source], point: Point) -> float:
    """Videos/s of one job."""
    model = Model.open(path, threads=point.threads, batch_size=point.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "preds.csv")
        job = Job(shards, output)
        report = score(job, model, StopRequest(), lambda progress: None)
    return report.record.scored / report.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", default=["../shared/data/yt8m/*.tfrecord"], metavar="SHARD")
    parser.add_argument("--threads", type=int, nargs="+", default=list(range(1, usable_cores() + 1)))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    shards, rates = find_shards(options.data), defaultdict(list)
    for _ in range(options.rounds):
        for point in points(options.threads):
            rates[point].append(rate(options.model, shards, point))
    table = Table(title=f"{options.model}, {machine()}", title_justify="left")
    table.add_column("setting")
    table.add_column("videos/s", justify="right")
    table.add_column("of its own choice", justify="right")
    own = statistics.median(rates[Point()])
    for point, seen in rates.items():
        table.add_row(str(point), f"{statistics.median(seen):,.0f}", f"{statistics.median(seen) / own:.1%}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
