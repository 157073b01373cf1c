"""How much of the session's own throughput `score` reaches, end to end, in one run.

    python -m benchmarks.pipeline --model models/bilstm.onnx '../shared/data/yt8m/*.tfrecord'

Rounds alternate: the model alone on batches that lie in memory, in its own lanes, then the whole job from shards to the
committed file. Printed are videos/s of both and the ratio of their medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Generator
from pathlib import Path

from scorer.batches import Batch, batches
from scorer.job import Job, score
from scorer.model import Model
from scorer.paths import find_shards
from scorer.pipeline import in_lanes


def resident(model: Model, held: list[Batch]) -> float:
    """Videos/s of the model alone."""

    def source() -> Generator[Batch]:
        yield from held

    began = time.perf_counter()
    for _ in in_lanes(lambda batch: model.run(batch.features), source(), model.lanes):
        pass
    return sum(len(batch) for batch in held) / (time.perf_counter() - began)


def whole(model: Model, shards: list[str], workers: int) -> float:
    """Videos/s of a job."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(shards, str(Path(folder) / "preds.csv"), workers=workers)
        report = score(job, model, threading.Event(), lambda progress: None)
    return report.record["scored"] / report.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = Model.open(options.model, threads=options.threads, batch_size=options.batch_size)
    shards = find_shards(options.shards)
    held = list(batches(shards, model.schema, model.batch_size))
    resident(model, held[:2])
    alone, jobs = [], []
    for _ in range(options.rounds):
        alone.append(resident(model, held))
        jobs.append(whole(model, shards, options.workers))
        print(f"model alone {alone[-1]:>9,.0f}  job {jobs[-1]:>9,.0f} videos/s", flush=True)
    ratio = statistics.median(jobs) / statistics.median(alone)
    print(
        f"median of {options.rounds}: {ratio:.1%} of the model's own throughput, "
        f"batches of {model.batch_size:,} in {model.lanes} lanes"
    )


if __name__ == "__main__":
    main()
