"""`score` with so many cores against `score --ray` with as many nodes of one core each, in alternating rounds.

    python -m benchmarks.cluster '../shared/data/yt8m/*.tfrecord' --model bundled --videos 200000 --rounds 3

The shards are copied again and again into a folder until they hold so many videos. Everything of a run, the command and
the nodes, is bound to the same cores. CPU seconds are those of the command and, of Ray's, its workers. What the nodes'
own processes take goes by the clock, whether they have work or not, and stands apart as a share of one core. A job of
a shard a core is measured beside each, so that what starting costs stands apart from what a video costs. Efficiency is
CPU a video of `score` over that of `score --ray`; by the clock it says something on a machine that does nothing else,
and so does videos/s.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from scorer.inputs.discover import find_shards
from scorer.inputs.position import BEGINNING
from scorer.inputs.readers import decoded_blocks
from scorer.inputs.records import Schema

HEADINGS = (
    "cores",
    "",
    "start s",
    "start CPU s",
    "CPU us a video",
    "the command's",
    "nodes' own",
    "videos/s",
    "efficiency",
    "by the clock",
)
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class ClusterRun:
    """One run: CPU seconds of the command and its workers, of the command alone, and of the nodes' own processes;
    seconds by the clock.
    """

    cpu: float
    command: float
    nodes: float
    seconds: float


def videos_in(shard: Path) -> int:
    return sum(len(block) for block in decoded_blocks([(0, find_shards([str(shard)])[0])], Schema({}), BEGINNING))


def copied(shards: Sequence[Path], folder: Path, videos: int) -> int:
    """Copy `shards` into `folder` until they hold at least so many videos; how many they do."""
    folder.mkdir()
    counts = [videos_in(shard) for shard in shards]
    held = number = 0
    while held < videos:
        shard = shards[number % len(shards)]
        shutil.copyfile(shard, folder / f"{number:06}.tfrecord")
        held += counts[number % len(shards)]
        number += 1
    return held


class Counted:
    """CPU seconds of processes that begin with `roots`, and of all that they start, as long as it is open."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots, self._cpu, self._first = {*roots}, dict[int, float](), dict[int, float]()
        self._workers: set[int] = set()
        self._done = threading.Event()
        self._look(self._first)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def seconds(self) -> tuple[float, float]:
        """Of the workers, Ray's name for which begins with "ray::", and of the others."""
        self._done.set()
        self._thread.join()
        self._look(self._cpu)
        spent = {pid: cpu - self._first.get(pid, 0.0) for pid, cpu in self._cpu.items()}
        workers = sum(cpu for pid, cpu in spent.items() if pid in self._workers)
        return workers, sum(spent.values()) - workers

    def _watch(self) -> None:
        while not self._done.wait(0.2):
            self._look(self._cpu)

    def _look(self, into: dict[int, float]) -> None:
        parents, found = {}, {}
        for path in Path("/proc").iterdir():
            if path.name.isdecimal():
                with suppress(OSError):
                    fields = (path / "stat").read_text().rpartition(")")[2].split()
                    parents[int(path.name)] = int(fields[1])
                    found[int(path.name)] = (int(fields[11]) + int(fields[12])) / _TICK
        for pid, cpu in found.items():
            if self._belongs(pid, parents):
                into[pid] = cpu
                with suppress(OSError):
                    if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::"):
                        self._workers.add(pid)

    def _belongs(self, pid: int, parents: dict[int, int]) -> bool:
        while pid not in self._roots:
            if pid not in parents:
                return False
            pid = parents[pid]
        return True


@contextmanager
def cluster(cores: Sequence[int]) -> Iterator[tuple[str, list[int]]]:
    """A node bound to each of `cores`: the address, and the processes that everything else comes from."""
    from ray.cluster_utils import Cluster

    made, roots = Cluster(), list[int]()
    node = {"num_cpus": 1, "object_store_memory": 200 << 20, "include_dashboard": False}
    everywhere = os.sched_getaffinity(0)
    for core in cores:
        os.sched_setaffinity(0, {core})
        started = made.add_node(**node)
        roots += [info.process.pid for infos in started.all_processes.values() for info in infos]
    os.sched_setaffinity(0, everywhere)
    try:
        yield str(made.address), roots
    finally:
        made.shutdown()


def run(shards: Path, model: str, cores: Sequence[int], output: Path, ray: tuple[str, list[int]] | None) -> ClusterRun:
    plain = [sys.executable, "-m", "yt8m", "score", str(shards), "-o", str(output), "--model", model, "--quiet"]
    more = ["--threads", str(len(cores))] if ray is None else ["--ray", ray[0]]
    began = time.monotonic()
    command = ["taskset", "-c", ",".join(map(str, cores)), *plain, "--device", "cpu", "--restart", *more]
    process = subprocess.Popen(command)
    counted = Counted(ray[1] if ray else [])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"score ended with {process.returncode}")
    command_cpu = usage.ru_utime + usage.ru_stime
    workers, nodes = counted.seconds()
    return ClusterRun(workers + command_cpu, command_cpu, nodes, seconds)


@dataclass(frozen=True)
class Pair:
    """Medians over rounds: seconds that a job of a shard a core takes; CPU microseconds of a video, of the command
    alone too; the nodes' own, of a core; videos/s.
    """

    start: float
    start_cpu: float
    each: float
    command: float
    nodes: float
    rate: float


def judged(small: Sequence[ClusterRun], large: Sequence[ClusterRun], videos: int) -> Pair:
    """`videos`: more in a large run than in a small one."""

    def more(name: str) -> float:
        return _median(large, name) - _median(small, name)

    each, command = more("cpu") / videos * 1e6, more("command") / videos * 1e6
    nodes = _median(large, "nodes") / _median(large, "seconds")
    return Pair(_median(small, "seconds"), _median(small, "cpu"), each, command, nodes, videos / more("seconds"))


def _median(runs: Sequence[ClusterRun], name: str) -> float:
    return statistics.median(getattr(run, name) for run in runs)


def _cells(pair: Pair, plain: Pair) -> list[str]:
    """Those of a row: of `pair`, and what it is of `plain`."""
    start = [f"{pair.start:.1f}", f"{pair.start_cpu:.1f}"]
    each = [f"{pair.each:.1f}", f"{pair.command:.1f}", f"{pair.nodes:.1%}", f"{pair.rate:,.0f}"]
    return [*start, *each, f"{plain.each / pair.each:.3f}", f"{pair.rate / plain.rate:.3f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+", type=Path)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--videos", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    shards = sorted(Path(shard.address) for shard in find_shards([*map(str, options.shards)]))
    table = Table(title=f"{options.model}, {machine()}", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        videos = copied(shards, folder / "large", options.videos)
        for cores in options.cores:
            few = copied(shards, folder / f"small{cores}", 1 + (cores - 1) * videos_in(shards[0]))
            plain, ray = _rounds(folder, cores, options)
            one, other = judged(*plain, videos - few), judged(*ray, videos - few)
            table.add_row(str(cores), "score", *_cells(one, one))
            table.add_row(str(cores), "score --ray", *_cells(other, one))
    table.caption = f"{videos:,} videos, {options.rounds} rounds; load {os.getloadavg()[1]:.1f}"
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _rounds(
    folder: Path, cores: int, options: argparse.Namespace
) -> tuple[tuple[list[ClusterRun], list[ClusterRun]], ...]:
    """(small runs, large runs) of `score` and of `score --ray`; the outputs must be the same."""
    bound = sorted(os.sched_getaffinity(0))[:cores]
    seen: tuple[tuple[list[ClusterRun], list[ClusterRun]], ...] = ([], []), ([], [])
    with cluster(bound) as nodes:
        for _ in range(options.rounds):
            for size, shards in enumerate((folder / f"small{cores}", folder / "large")):
                outputs = folder / "plain.csv", folder / "ray.csv"
                seen[0][size].append(run(shards, options.model, bound, outputs[0], None))
                seen[1][size].append(run(shards, options.model, bound, outputs[1], nodes))
                if outputs[0].read_bytes() != outputs[1].read_bytes():
                    raise SystemExit("the bytes differ")
    return seen


if __name__ == "__main__":
    main()
