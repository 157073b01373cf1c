"""A simulation, not a measurement: what a job of a billion videos would take on clusters of 10 to 1,000 workers.

    python -m benchmarks.simulation --plot docs/pictures/cluster_simulation.png

Its figures are those that benchmarks/cluster.py and benchmarks/merge.py measured on one machine. Workers take parts as
`score --ray` hands them out: two in flight for each, their rows committed in order by one process; or, as with
--ray-parts, in part files that the workers write, of which that process takes note in any order. One worker in twenty
is half as fast as the rest, every part takes longer or shorter by a tenth (one standard deviation), and a node of eight
workers is lost once in 20 hours on average, is missed after ten seconds and replaced after five minutes. The network
and the storage have room for all of it; what they would have to carry is printed.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

VIDEOS = 1_000_000_000
WORKERS = (1, 3, 10, 30, 100, 300, 1000)
SHARD_BYTES, PART_BYTES, ROW_BYTES, STATE_BYTES = 4700, 143, 139, 62  # a video
A_NODE, STRAGGLERS, NOISE = 8, 0.05, 0.1
NODE_HOURS, MISSED_SECONDS, BACK_SECONDS = 20.0, 10.0, 300.0
CORE_HOUR, GPU_HOUR, GB_MONTH = 0.04, 3.0, 0.023  # US dollars: list prices of large clouds are about these


@dataclass(frozen=True)
class Way:
    """How results reach the output.

    videos: of a part. take: seconds of the driver for one. in_order: parts are taken in order only.
    resumes: a part whose worker was lost resumes where it was.
    """

    name: str
    videos: int
    take: float
    in_order: bool
    resumes: bool


@dataclass
class Simulated:
    """What came of it. seconds: until the last part was taken. busy: of these the driver's. lost: nodes."""

    seconds: float = 0.0
    busy: float = 0.0
    lost: int = 0


@dataclass
class _Simulated:
    """Parts wait (to begin), run (part by worker), are done, and taken by the driver."""

    todo: deque[tuple[int, float]]  # part, and the share of it that is left to do
    waiting: deque[tuple[int, float]] = field(default_factory=deque)
    free: list[int] = field(default_factory=list)
    running: dict[int, tuple[int, float, float]] = field(default_factory=dict)  # worker: part, since, seconds
    done: set[int] = field(default_factory=set)
    ready: deque[int] = field(default_factory=deque)
    taken: int = 0
    in_flight: int = 0


class Simulation:
    """One job: `run` it once."""

    def __init__(self, way: Way, workers: int, rate: float, videos: int = VIDEOS, seed: int = 0) -> None:
        """rate: videos/s of a worker."""
        self._way, self._workers, self._chance = way, workers, random.Random(seed)
        self._part_seconds = way.videos / rate
        self._parts = -(-videos // way.videos)
        self._slow = [2.0 if self._chance.random() < STRAGGLERS else 1.0 for _ in range(workers)]
        self._state = _Simulated(deque((part, 1.0) for part in range(self._parts)), free=list(range(workers)))
        self._events: list[tuple[float, int, str, int, int]] = []  # seconds, number, what, of which, how often before
        self._numbers = itertools.count()
        self._epoch = [0] * workers
        self._driver_free = True
        self.result = Simulated()

    def run(self) -> Simulated:
        for node in range(-(-self._workers // A_NODE)):
            self._after(0.0, self._chance.expovariate(1 / (NODE_HOURS * 3600)), "lost", node)
        self._begin(0.0)
        while self._state.taken < self._parts:
            now, _, what, which, epoch = heapq.heappop(self._events)
            getattr(self, f"_{what}")(now, which, epoch)
            self._take(now)
            self._begin(now)
            self.result.seconds = now
        return self.result

    def _after(self, now: float, seconds: float, what: str, which: int, epoch: int = 0) -> None:
        heapq.heappush(self._events, (now + seconds, next(self._numbers), what, which, epoch))

    def _begin(self, now: float) -> None:
        """Hand out parts, as many as may be in flight, and let free workers begin."""
        state = self._state
        while state.todo and state.in_flight < 2 * self._workers:
            state.waiting.append(state.todo.popleft())
            state.in_flight += 1
        while state.waiting and state.free:
            worker = state.free.pop()
            part, share = state.waiting.popleft()
            seconds = self._part_seconds * self._slow[worker] * max(0.1, self._chance.gauss(1, NOISE)) * share
            state.running[worker] = part, now, seconds
            self._after(now, seconds, "finished", worker, self._epoch[worker])

    def _finished(self, now: float, worker: int, epoch: int) -> None:
        if epoch == self._epoch[worker]:
            part, _, _ = self._state.running.pop(worker)
            self._state.done.add(part)
            self._state.ready.append(part)
            self._state.free.append(worker)

    def _take(self, now: float) -> None:
        """Let the driver take the next part, if it has nothing to do and there is one."""
        state = self._state
        part = state.taken if self._way.in_order else next(iter(state.ready), -1)
        if self._driver_free and part in state.done:
            state.done.remove(part)
            if not self._way.in_order:
                state.ready.popleft()
            self._driver_free = False
            self.result.busy += self._way.take
            self._after(now, self._way.take, "taken", part)

    def _taken(self, now: float, part: int, epoch: int) -> None:
        self._driver_free = True
        self._state.taken += 1
        self._state.in_flight -= 1

    def _lost(self, now: float, node: int, epoch: int) -> None:
        self.result.lost += 1
        self._after(now, MISSED_SECONDS, "missed", node)
        self._after(now, BACK_SECONDS, "back", node)
        for worker in self._of(node):
            self._epoch[worker] += 1
        self._state.free = [worker for worker in self._state.free if worker not in self._of(node)]

    def _missed(self, now: float, node: int, epoch: int) -> None:
        """Its parts are handed out again."""
        for worker in self._of(node):
            if worker in self._state.running:
                part, since, seconds = self._state.running.pop(worker)
                was_done = (now - MISSED_SECONDS - since) / seconds if self._way.resumes else 0.0
                self._state.waiting.appendleft((part, max(0.0, 1 - was_done)))

    def _back(self, now: float, node: int, epoch: int) -> None:
        self._state.free += self._of(node)
        self._after(now, self._chance.expovariate(1 / (NODE_HOURS * 3600)), "lost", node)

    def _of(self, node: int) -> range:
        return range(node * A_NODE, min((node + 1) * A_NODE, self._workers))


def billion(ways: Sequence[Way], rates: dict[str, float], merge_us: float, prices: dict[str, float]) -> Table:
    """Hours, videos/s and cost for each kind of worker and number of them."""
    table = Table(title="SIMULATED: a billion videos", title_justify="left")
    for heading in (
        "worker",
        "workers",
        "rows",
        "hours",
        "videos/s",
        "of all",
        "driver busy",
        "nodes lost",
        "reads GB/s",
        "$",
    ):
        table.add_column(heading, justify="right")
    for (name, rate), workers, way in itertools.product(rates.items(), (10, 100, 1000), ways):
        seen = Simulation(way, workers, rate).run()
        made, hours = VIDEOS / seen.seconds, seen.seconds / 3600
        cells = f"{hours:.2f}", f"{made:,.0f}", f"{made / workers / rate:.0%}", f"{seen.busy / seen.seconds:.0%}"
        reads = f"{made * SHARD_BYTES / 1e9:.2f}"
        table.add_row(
            name, f"{workers:,}", way.name, *cells, f"{seen.lost}", reads, f"{hours * workers * prices[name]:,.0f}"
        )
    table.caption = (
        f"shards {VIDEOS * SHARD_BYTES / 1e12:.1f} TB, {VIDEOS * SHARD_BYTES / 1e9 * GB_MONTH:,.0f} $ a month; "
        f"part files {VIDEOS * PART_BYTES / 1e9:.0f} GB; merging them {VIDEOS * merge_us / 6e7:.0f} minutes of a core; "
        f"rows {VIDEOS * ROW_BYTES / 1e9:.0f} GB, with {VIDEOS * STATE_BYTES / 1e9:.0f} GB beside them meanwhile. "
        f"{CORE_HOUR} $ a core and hour, {GPU_HOUR} $ a GPU and hour, {GB_MONTH} $ a GB and month"
    )
    return table


def plot(ways: Sequence[Way], rates: dict[str, float], path: Path) -> None:
    """Videos/s by the number of workers, and what as many would make without waiting."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for place, (name, rate) in enumerate(rates.items()):
        axes.plot(WORKERS, [rate * workers for workers in WORKERS], ":", color=f"C{place}", linewidth=1)
        for way, line in zip(ways, ("o-", "s--"), strict=True):
            videos = [min(VIDEOS, round(rate * workers * 3600)) for workers in WORKERS]  # an hour's
            made = [
                count / Simulation(way, workers, rate, count).run().seconds
                for workers, count in zip(WORKERS, videos, strict=True)
            ]
            axes.plot(WORKERS, made, line, color=f"C{place}", markersize=4, label=f"{name}, {way.name}")
    axes.set(title="simulated; dotted: no waiting at all", xlabel="workers", ylabel="videos/s")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--row-us", type=float, default=1.2, help="of the command, to take and commit a row [1.2]")
    parser.add_argument("--task-ms", type=float, default=0.85, help="of the command, for a part [0.85]")
    parser.add_argument("--merge-us", type=float, default=0.5, help="of merging, for a row [0.5]")
    parser.add_argument("--core", type=float, default=2300, help="videos/s of a core with BiLSTM in fp32 [2300]")
    parser.add_argument("--gpu", type=float, default=20_000, help="videos/s of a GPU, or of a core with int8 [20000]")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    few, many = 14_000, 100_000  # 64 MB of shards, as score --ray cuts them; --ray-parts 10000
    task = options.task_ms / 1e3
    ways = [
        Way("committed in order", few, few * options.row_us / 1e6 + task, in_order=True, resumes=False),
        Way("part files", many, task, in_order=False, resumes=True),
    ]
    rates = {"core": options.core, "GPU": options.gpu}
    prices = {"core": CORE_HOUR, "GPU": GPU_HOUR}
    Console(width=None if sys.stdout.isatty() else 140).print(billion(ways, rates, options.merge_us, prices))
    if options.plot:
        plot(ways, rates, options.plot)


if __name__ == "__main__":
    main()
