"""What a person sees of a run: a live table where standard error is a terminal, plain lines where it is not."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from scorer.errors import printable
from scorer.system import phases
from scorer.system.signals import StopRequest
from scorer.system.tables import format_table, terminal_width
from scorer.system.terminal import print_stderr, takes_escapes
from train.evaluate import Record
from train.training import View

_SHOWN = 12
_COLUMNS = ("loss", "MAP@10", "GAP@20", "Hit@1", "PERR")


def log(line: str) -> None:
    """One line on standard error."""
    print_stderr(printable(line))


@contextmanager
def view(name: str, epochs: int, stop: StopRequest, *, quiet: bool) -> Iterator[View]:
    """The view of a run of the model `name`; it shows nothing at all if `quiet`."""
    if quiet:
        yield _Nothing()
    elif takes_escapes(sys.stderr):
        table = _LiveTable(name, epochs, stop)
        with stop.shown_elsewhere(), table.live:
            yield table
    else:
        yield _Lines(name, epochs)


class _Nothing:
    def step(self, done: int, steps: int) -> None:
        pass

    def epoch(self, record: Record) -> None:
        pass

    def log(self, line: str) -> None:
        pass


class TrialView(_Nothing):
    """Shows a trial as a phase: `at` is called with the share of its `steps` that is done."""

    def __init__(self, at: Callable[[float, str], None], steps: int) -> None:
        self._at, self._steps = at, steps

    def step(self, done: int, steps: int) -> None:
        self._at(done / self._steps, "")


class _Lines:
    """One line an epoch, and one every LINE_SECONDS within it."""

    def __init__(self, name: str, epochs: int) -> None:
        self.name, self.epochs = name, epochs
        self._start = self._told = time.monotonic()
        self._first = 0
        self._best = -1.0
        self._done = self._steps = 0

    def step(self, done: int, steps: int) -> None:
        self._first = self._first or done - 1 or done
        self._done, self._steps = done, steps
        if time.monotonic() - self._told >= phases.LINE_SECONDS:
            self._told = time.monotonic()
            log(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {self.name}: step {done:,}/{steps:,}, {self._left()} left")

    def epoch(self, record: Record) -> None:
        measures = "  ".join(f"{name} {record[name]:.4f}" for name in _COLUMNS)
        best = "  best so far" if record["MAP@10"] > self._best else ""
        self._best = max(self._best, record["MAP@10"])
        self.log(
            f"epoch {record['epoch']:.0f}/{self.epochs}  {measures}  "
            f"{record['videos_per_second']:,.0f} videos/s  {self._left()} left{best}"
        )

    def log(self, line: str) -> None:
        log(f"{self.name}: {line}")

    def _left(self) -> str:
        here = max(1, self._done - self._first)
        seconds = (time.monotonic() - self._start) / here * (self._steps - self._done)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


class _LiveTable:
    """The latest epochs in a table, the best with a star, and a bar of all steps with videos/s and the time left."""

    def __init__(self, name: str, epochs: int, stop: StopRequest) -> None:
        self.name, self.epochs, self._stop = name, epochs, stop
        self._records: list[Record] = []
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("step {task.completed:,.0f}/{task.total:,.0f}"),
            TextColumn("[cyan]{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task(name, total=1, rate="", start=False)
        self._console = Console(stderr=True)
        self.live = Live(self._render(), console=self._console, refresh_per_second=4)

    def step(self, done: int, steps: int) -> None:
        if not self._bar.tasks[0].started:
            self._bar.update(self._task, completed=done)
            self._bar.start_task(self._task)
        self._bar.update(self._task, completed=done, total=steps)
        if self._stop.is_set():
            self._bar.update(self._task, description=f"{self.name}: stopping, once more stops at once")

    def epoch(self, record: Record) -> None:
        self._records = [*self._records, record][-_SHOWN:]
        self._bar.update(self._task, rate=f"{record['videos_per_second']:,.0f} videos/s")
        self.live.update(self._render())

    def log(self, line: str) -> None:
        self.live.console.print(printable(f"{self.name}: {line}"), highlight=False, markup=False)

    def _render(self) -> Group:
        best = max((record["MAP@10"] for record in self._records), default=0)
        rows = [
            [
                f"{record['epoch']:.0f}/{self.epochs}{' *' if record['MAP@10'] == best else ''}",
                *(f"{record[name]:.4f}" for name in _COLUMNS),
                f"{record['videos_per_second']:,.0f}",
            ]
            for record in self._records
        ]
        lines = [self.name, *format_table(("epoch", *_COLUMNS, "videos/s"), rows, self._console.width)]
        return Group(Text("\n".join(lines)), self._bar)


def print_table(rows: Sequence[tuple[str, Record]]) -> None:
    """The models side by side on standard output, as the report's Table 1: (name, measures) each."""
    columns = ("model", *_COLUMNS[1:], "parameters", "epoch", "seconds")
    cells = [
        [name, *(f"{record[column]:.4f}" for column in columns[1:5]), *(f"{record[c]:,.0f}" for c in columns[5:])]
        for name, record in rows
    ]
    print("\n".join(["held-out videos", *format_table(columns, cells, terminal_width())]), flush=True)
