"""How much of the slots' own throughput `score` reaches, end to end, and what a job costs beside the model.

    python -m benchmarks.pipeline --model models/bilstm.onnx '../shared/data/yt8m/*.tfrecord'
    python -m benchmarks.pipeline --free-model --repeat 10 '../shared/data/yt8m/*.tfrecord'

With a model rounds alternate: the model alone on batches that lie in memory, in its own slots, then the whole job from
shards to the committed file. Printed are videos/s and core-microseconds a video of both, and their medians' ratio.

Where the machine is not alone these vary by more than what is to be seen. So a third part takes the slots' own clocks,
which stand still while others have the core: the core-microseconds a video that go into the model, and into reading and
decoding between two batches of it, when it has emptied the caches.

With a model that costs nothing all that is left is what feeds a fast one. Rounds alternate between one core, all of
them, and as many jobs of one core each side by side, which share nothing but the machine: no job on all cores can
be expected to do more than these together. And between the shards as they are and in one file. By the threads' own
clocks: what a video costs on all cores, and how much of that no second core can share, in the thread that writes and in
whichever thread takes the next range.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.free import FreePredictor
from scorer.inputs.batching import Batch, batches
from scorer.inputs.discover import find_shards
from scorer.inputs.position import Position
from scorer.inputs.records import Schema
from scorer.inputs.source import Source
from scorer.job.run import score
from scorer.job.spec import Job
from scorer.model.model import Model
from scorer.model.predictor import Predictor
from scorer.pipeline.ordered import in_order
from scorer.pipeline.ranges import RangeReader
from scorer.system.signals import StopRequest


@dataclass(frozen=True)
class Throughput:
    """videos/s, and the microseconds of all cores together that a video took."""

    rate: float
    cost: float

    @classmethod
    def of(cls, work: Callable[[Path], int]) -> Throughput:
        """The speed of `work`, which returns how many videos it did; the folder it is given is removed untimed."""
        with tempfile.TemporaryDirectory() as folder:
            began, used = time.perf_counter(), time.process_time()
            videos = work(Path(folder))
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


def whole(model: Predictor, shards: list[Source], folder: Path) -> int:
    """Do a job, whose output is in `folder`."""
    report = score(Job(shards, str(folder / "preds.csv")), model, StopRequest(), lambda progress: None)
    return report.record.scored


@dataclass(frozen=True)
class Serial:
    """A job with a free model: its speed, and of that the core-microseconds a video that no other core can share.

    writing: in the thread that appends and commits. taking: of the thread that takes the next range.
    """

    speed: Throughput
    writing: float
    taking: float

    @classmethod
    def of(cls, model: Predictor, shards: list[Source]) -> Serial:
        taking, tasks = 0.0, RangeReader._tasks

        def timed(reader: RangeReader[Any], start: Position) -> Generator[Any]:
            nonlocal taking
            found = tasks(reader, start)
            while True:
                began = time.thread_time()
                task = next(found, None)
                taking += time.thread_time() - began
                if task is None:
                    return
                yield task

        videos, writing = 0, 0.0

        def job(folder: Path) -> int:
            nonlocal videos, writing
            began = time.thread_time()
            videos = whole(model, shards, folder)
            writing = time.thread_time() - began
            return videos

        with mock.patch.object(RangeReader, "_tasks", timed):
            speed = Throughput.of(job)
        return cls(speed, writing / videos * 1e6, taking / videos * 1e6)

    def __str__(self) -> str:
        serial = self.writing + self.taking
        return f"{self.speed}, of which serial {serial:.3f}: writing {self.writing:.3f}, taking {self.taking:.3f}"


@dataclass(frozen=True)
class Round:
    """One core, all cores, and a job on each of them side by side (videos/s of all together)."""

    one: Throughput
    all: Serial
    apart: float

    def __str__(self) -> str:
        times = self.all.speed.rate / self.one.rate, self.apart / self.one.rate
        return (
            f"one core {self.one}\nall cores {self.all}\na job on each core {self.apart:>9,.0f} videos/s\n"
            f"times one core: all cores {times[0]:.2f}, a job on each {times[1]:.2f}"
        )


def side_by_side(cores: list[int], shards: list[Source], batch_size: int) -> float:
    """videos/s of as many jobs as there are cores, each with one of its own, all together."""
    context = multiprocessing.get_context("spawn")
    start = context.Barrier(len(cores))
    with ProcessPoolExecutor(len(cores), context, initializer=_meet_at, initargs=(start,)) as pool:
        return sum(pool.map(_alone, cores, [shards] * len(cores), [batch_size] * len(cores)))


_start: Any = None


def _meet_at(start: Any) -> None:
    global _start
    _start = start


def _alone(core: int, shards: list[Source], batch_size: int) -> float:
    """videos/s of a job on one core that begins when the others do."""
    os.sched_setaffinity(0, [core])
    model = FreePredictor(batch_size=batch_size, slots=1)
    _start.wait()
    return Throughput.of(lambda folder: whole(model, shards, folder)).rate


def one_round(cores: list[int], shards: list[Source], batch_size: int) -> Round:
    os.sched_setaffinity(0, cores[:1])
    one = Throughput.of(lambda folder: whole(FreePredictor(batch_size=batch_size, slots=1), shards, folder))
    os.sched_setaffinity(0, cores)
    all_cores = Serial.of(FreePredictor(batch_size=batch_size, slots=len(cores)), shards)
    return Round(one, all_cores, side_by_side(cores, shards, batch_size))


def free(shards: list[Source], batch_size: int, repeat: int, rounds: int) -> None:
    """What a job costs beside the model, on one core and on all, from many shards and from one."""
    cores, seen = sorted(os.sched_getaffinity(0)), defaultdict[str, list[Round]](list)
    with tempfile.TemporaryDirectory() as folder:
        one = Path(folder) / "one.tfrecord"
        with one.open("wb") as file:
            for shard in shards:
                file.write(Path(shard.address).read_bytes())
        for _ in range(rounds):
            for name, given in (("many shards", shards), ("one shard", find_shards([str(one)]))):
                made = one_round(cores, given * repeat, batch_size)
                seen[name].append(made)
                print(f"{name}\n{made}", flush=True)
    print(f"medians of {rounds}, {len(cores)} cores, batches of {batch_size:,}:")
    for name, rounds_made in seen.items():
        figures = zip(*map(_figures, rounds_made), strict=True)
        one_rate, one_cost, rate, cost, writing, taking, apart = map(statistics.median, figures)
        print(
            f"{name}\n{Round(Throughput(one_rate, one_cost), Serial(Throughput(rate, cost), writing, taking), apart)}"
        )


def _figures(made: Round) -> tuple[float, ...]:
    speed, both = made.one, made.all
    return speed.rate, speed.cost, both.speed.rate, both.speed.cost, both.writing, both.taking, made.apart


def clocked(model: Model, shards: list[Source]) -> tuple[float, float]:
    """Core-microseconds a video of the slots: reading and decoding, and the model."""
    decoding, computing, videos = 0.0, [], 0

    def source() -> Generator[Batch]:
        nonlocal decoding, videos
        found = batches(shards, Schema(model.facts.inputs), model.batch_size)
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
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model")
    which.add_argument("--free-model", action="store_true", help="one that costs nothing")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeat", type=int, default=1, help="times that the shards are read, with a free model")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if options.free_model:
        free(find_shards(options.shards), options.batch_size or 4096, options.repeat, options.rounds)
        return
    model = Model.open(options.model, threads=options.threads, batch_size=options.batch_size)
    shards = find_shards(options.shards)
    held = list(batches(shards, Schema(model.facts.inputs), model.batch_size))
    resident(model, held[:2])
    alone, jobs, clocks = [], [], []
    for _ in range(options.rounds):
        alone.append(Throughput.of(lambda folder: resident(model, held)))
        jobs.append(Throughput.of(lambda folder: whole(model, shards, folder)))
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
