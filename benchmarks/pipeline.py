"""How much of the slots' own throughput `score` reaches, end to end, in one run.

    python -m benchmarks.pipeline --model models/bilstm.onnx '../shared/data/yt8m/*.tfrecord'

Rounds alternate: the model alone on batches that lie in memory, in its own slots, then the whole job from shards to the
committed file. Printed are videos/s and core-microseconds a video of both, and the ratio of their medians.

Where the machine is not alone these vary by more than what is to be seen. So a third part takes the slots' own clocks,
which stand still while others have the core: the core-microseconds a video that go into the model, and into reading and
decoding between two batches of it, when it has emptied the caches.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from scorer.inputs.batching import Batch, batches
from scorer.inputs.discover import find_shards
from scorer.inputs.records import Schema
from scorer.inputs.source import Source
from scorer.job.run import score
from scorer.job.spec import Job
from scorer.model.model import Model
from scorer.pipeline.ordered import in_order
from scorer.system.signals import StopRequest


@dataclass(frozen=True)
class Speed:
    """videos/s, and the microseconds of all cores together that a video took."""

    rate: float
    cost: float

    @classmethod
    def of(cls, work: Callable[[], int]) -> Speed:
        """The speed of `work`, which returns how many videos it did."""
        began, used = time.perf_counter(), time.process_time()
        videos = work()
        return cls(videos / (time.perf_counter() - began), (time.process_time() - used) / videos * 1e6)

    def __str__(self) -> str:
        return f"{self.rate:>9,.0f} videos/s {self.cost:>7.1f} us"


def resident(model: Model, held: list[Batch]) -> int:
    """Run the model alone."""

    def source() -> Generator[Batch]:
        yield from held

    for _ in in_order(lambda batch: model.run(batch.features), source(), model.slots, len(held)):
        pass
    return sum(len(batch) for batch in held)


def whole(model: Model, shards: list[Source], workers: int) -> int:
    """Do a job."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(shards, str(Path(folder) / "preds.csv"), workers=workers)
        report = score(job, model, StopRequest(), lambda progress: None)
    return report.record.scored


def clocked(model: Model, shards: list[Source]) -> tuple[float, float]:
    """Core-microseconds a video of the slots: reading and decoding, and the model."""
    decoding, computing, videos = 0.0, [], 0

    def source() -> Generator[Batch]:
        nonlocal decoding, videos
        found = batches(shards, Schema(model.facts.inputs), model.batch_size, depth=model.slots)
        while True:
            began = time.thread_time()
            batch = next(found, None)
            decoding += time.thread_time() - began
            if batch is None:
                return
            videos += len(batch)
            yield batch

    def run(batch: Batch) -> None:
        began = time.thread_time()
        model.run(batch.features)
        computing.append(time.thread_time() - began)
        batch.release()

    for _ in in_order(run, source(), model.slots, 2 * model.slots):
        pass
    return decoding / videos * 1e6, sum(computing) / videos * 1e6


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
    held = list(batches(shards, Schema(model.facts.inputs), model.batch_size))
    resident(model, held[:2])
    alone, jobs, clocks = [], [], []
    for _ in range(options.rounds):
        alone.append(Speed.of(lambda: resident(model, held)))
        jobs.append(Speed.of(lambda: whole(model, shards, options.workers)))
        clocks.append(clocked(model, shards))
        print(f"model alone {alone[-1]}   job {jobs[-1]}", flush=True)
    ratio = statistics.median(job.rate for job in jobs) / statistics.median(speed.rate for speed in alone)
    print(
        f"median of {options.rounds}: {ratio:.1%} of the slots' own throughput, "
        f"batches of {model.batch_size:,} in {model.slots} slots"
    )
    decoding, computing = (statistics.median(column) for column in zip(*clocks, strict=True))
    print(f"by the slots' own clocks: {decoding:.2f} us a video to read and decode, {computing:.1f} us in the model")


if __name__ == "__main__":
    main()
