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
from scorer.system.signals import StopRequest
from scorer.system.tables import format_table, terminal_width
from scorer.system.terminal import print_stderr, takes_escapes
from train.evaluate import Record
from train.training import View

QUIET_SECONDS = 2.0
"""What takes no longer than this shows no progress."""
LINE_SECONDS = 10.0
"""Between two lines about the same thing where there is no terminal."""
_SHOWN = 12
_COLUMNS = ("loss", "MAP@10", "GAP@20", "Hit@1", "PERR")

At = Callable[[float, str], None]
"""Called with the share of a phase that is done, and what comes next."""


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


@contextmanager
def phase(name: str, stop: StopRequest, *, quiet: bool = False) -> Iterator[At]:
    """The view of what comes before a run, once it takes longer than QUIET_SECONDS: share done, time left."""
    if quiet:
        yield lambda share, what: None
    elif takes_escapes(sys.stderr):
        with _PhaseBar(name) as bar:
            yield bar.at
    else:
        yield _PhaseLines(name).at


class Clock:
    """Estimates the time left from the share done; says when the next line is due."""

    def __init__(self, wait: float) -> None:
        self._start = time.monotonic()
        self._due = self._start + wait

    def due(self) -> bool:
        """Whether LINE_SECONDS have passed since it last was, or the first wait has."""
        if time.monotonic() < self._due:
            return False
        self._due = time.monotonic() + LINE_SECONDS
        return True

    def left(self, share: float) -> str:
        """Minutes and seconds, "?" at the very beginning."""
        if share <= 0:
            return "?"
        seconds = int((time.monotonic() - self._start) * (1 - share) / share)
        return f"{seconds // 60}:{seconds % 60:02}"


def _stamp() -> str:
    return time.strftime("%H:%M:%S")


class _PhaseLines:
    """A line with the time of day every LINE_SECONDS."""

    def __init__(self, name: str) -> None:
        self._name, self._clock = name, Clock(QUIET_SECONDS)

    def at(self, share: float, what: str) -> None:
        if self._clock.due():
            detail = f", {what}" if what else ""
            log(f"{_stamp()} train: {self._name}, {share:.0%}, {self._clock.left(share)} left{detail}")


class _PhaseBar:
    """A bar that is gone at the end."""

    def __init__(self, name: str) -> None:
        self._name, self._clock = name, Clock(QUIET_SECONDS)
        self._bar = Progress(
            TextColumn(f"{name}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[left]} left  {task.fields[what]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(name, total=1.0, left="?", what="")
        self._shown = False

    def __enter__(self) -> _PhaseBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._shown:
            self._bar.stop()

    def at(self, share: float, what: str) -> None:
        if not self._shown and self._clock.due():
            self._shown = True
            self._bar.start()
        self._bar.update(self._task, completed=share, left=self._clock.left(share), what=what)


class _Nothing:
    def step(self, done: int, steps: int) -> None:
        pass

    def epoch(self, record: Record) -> None:
        pass

    def log(self, line: str) -> None:
        pass


class _Lines:
    """One line an epoch, and one every LINE_SECONDS within it."""

    def __init__(self, name: str, epochs: int) -> None:
        self.name, self.epochs = name, epochs
        self._clock = Clock(LINE_SECONDS)
        self._start = time.monotonic()
        self._first = 0
        self._best = -1.0
        self._done = self._steps = 0

    def step(self, done: int, steps: int) -> None:
        self._first = self._first or done - 1 or done
        self._done, self._steps = done, steps
        if self._clock.due():
            log(f"{_stamp()} {self.name}: step {done:,}/{steps:,}, {self._left()} left")

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
