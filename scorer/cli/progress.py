"""What a person sees on standard error while a job runs.

Nothing of it may decide how a command ends: where standard error is closed or broken, what it was to say is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorer.job.spec import Progress


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
