"""What a person sees on standard error while a job runs.

Nothing of it may decide how a command ends: where standard error is closed or broken, what it was to say is lost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from scorer.system.phases import LINE_SECONDS
from scorer.system.terminal import print_stderr, takes_escapes
from scorer.system.threads import startable

if TYPE_CHECKING:
    from scorer.job.spec import Progress


def shown_progress(
    command: str, shards: int, size: int, quiet: bool
) -> AbstractContextManager[Callable[[Progress], None]]:
    """What shows how far `command` is with `shards` shards of `size` bytes: a bar, or lines where no terminal is.

    Lines also where the system does not start a thread for the bar and one for the work.
    """
    if quiet:
        return nullcontext(lambda progress: None)
    if takes_escapes(sys.stderr) and startable(2) == 2:
        return progress_bar(shards, size)
    return nullcontext(ProgressLines(command, shards, size, print_stderr))


@contextmanager
def progress_bar(shards: int, size: int) -> Iterator[Callable[[Progress], None]]:
    """A bar over `size` bytes in `shards` shards: videos, videos/s, shards, time left. Gone at the end."""
    import rich.progress as columns
    from rich.console import Console

    bar = columns.Progress(
        columns.SpinnerColumn(),
        columns.BarColumn(bar_width=None),
        columns.TextColumn("{task.fields[videos]:>10,} videos"),
        columns.TextColumn("[cyan]{task.fields[rate]:>9,.0f} videos/s"),
        columns.TextColumn("shard {task.fields[shard]:,}/{task.fields[shards]:,}"),
        columns.TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=size, videos=0, rate=0.0, shard=0, shards=shards)
        first: Progress | None = None

        def show(progress: Progress) -> None:
            nonlocal first
            first = first or progress
            seconds = bar.tasks[0].elapsed or 0.0
            rate = (progress.scored - first.scored) / seconds if seconds else 0.0
            shard = min(progress.shards + 1, shards)
            bar.update(task, completed=progress.bytes, videos=progress.scored, rate=rate, shard=shard, shards=shards)

        yield show


class ProgressLines:
    """A line with the time of day about every LINE_SECONDS, for a log: videos, videos/s, shard, time left.

    command: which one is at work. shards, size: how many, and their bytes. log: takes each line.
    clock: seconds, as time.monotonic.
    """

    def __init__(
        self,
        command: str,
        shards: int,
        size: int,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._command, self._shards, self._size, self._log, self._clock = command, shards, size, log, clock
        self._first: Progress | None = None
        self._start = clock()
        self._due = self._start + LINE_SECONDS

    def __call__(self, progress: Progress) -> None:
        first = self._first = self._first or progress
        now = self._clock()
        if now < self._due:
            return
        self._due = now + LINE_SECONDS
        seconds = now - self._start
        rate = (progress.scored - first.scored) / seconds
        shard = min(progress.shards + 1, self._shards)
        left = _time_left(seconds, progress.bytes - first.bytes, self._size - progress.bytes)
        self._log(
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {self._command}: {progress.scored:,} videos, {rate:,.0f} videos/s, "
            f"shard {shard:,}/{self._shards:,}, {left} left"
        )


def _time_left(seconds: float, done: int, left: int) -> str:
    """For `left` bytes where `done` took so many seconds: 1:02:03."""
    if done <= 0:
        return "?"
    minutes, rest = divmod(int(seconds / done * left), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
