"""What a person sees on standard error: a progress bar while a job runs, and a summary at its end.

Nothing of it may decide how a command ends: where standard error is closed or broken, what it was to say is lost.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from scorer.errors import printable

if TYPE_CHECKING:
    from scorer.job import Progress


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


def hold_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed, or the next file, the output say, gets what is printed on them."""
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):  # writing to 1 must go on failing
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest free number, which is `descriptor`
    if sys.stderr is None:
        _silence()


def tell(line: str) -> None:
    """Print `line` on standard error if it can be."""
    if sys.stderr is None:  # print() would take standard output
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _silence()


def _silence() -> None:
    """Python's exit would fail on what a broken stream still buffers."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    """Print (name, value) pairs in two columns on standard error; names stand out where that is a terminal."""
    width = max(len(name) for name, _ in lines) + 2
    bold, plain = ("\033[1m", "\033[0m") if sys.stderr.isatty() else ("", "")
    for name, value in lines:
        tell(f"{bold}{name:<{width}}{plain}{printable(value)}")
