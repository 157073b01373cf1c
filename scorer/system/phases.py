"""Phases of a long command on standard error: what it is doing, how much of it is done, how long the rest takes.

On a terminal one line moves and goes; elsewhere, in a log say, a line with the time of day tells of every phase that
takes longer than two seconds, and again every ten.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

from scorer.errors import printable
from scorer.system.terminal import print_stderr, takes_escapes
from scorer.system.threads import start_threads

At: TypeAlias = Callable[[float], None]
"""Takes the share of a phase that is done, from 0 to 1."""

FIRST_SECONDS, LINE_SECONDS = 2.0, 10.0
"""Until the first line of a phase where nobody watches, and between two."""
_REDRAW_SECONDS = 0.2


def nobody(share: float) -> None:
    """An `At` that tells nobody."""


def portion(at: At, low: float, high: float) -> At:
    """The `At` of what makes up the shares from `low` to `high` of a phase."""
    return lambda share: at(low + (high - low) * share)


@contextmanager
def phase(name: str, text: str) -> Iterator[At]:
    """Show on standard error that the command `name` does `text`, until the block ends."""
    shown = _Shown(f"{name}: {printable(text)}")
    done = threading.Event()
    show = _redraw if takes_escapes(sys.stderr) else _log
    threads = start_threads(1, lambda: show(shown, done), "phase")  # where the system starts none, nothing is shown
    try:
        yield shown.at
    finally:
        done.set()
        for thread in threads:
            thread.join()


class _Shown:
    """What a phase's line says, at any time."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._start = time.monotonic()
        self._share = 0.0

    def at(self, share: float) -> None:
        self._share = min(1.0, max(self._share, share))

    def line(self) -> str:
        """With the share that is done, and an estimate of the time left from it; without, where none is known."""
        if not self._share:
            return self._text
        left = (time.monotonic() - self._start) * (1 - self._share) / self._share
        minutes, seconds = divmod(round(left), 60)
        return f"{self._text}, {self._share:.0%}, {minutes // 60}:{minutes % 60:02}:{seconds:02} left"


def _log(shown: _Shown, done: threading.Event) -> None:
    wait = FIRST_SECONDS
    while not done.wait(wait):
        print_stderr(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {shown.line()}")
        wait = LINE_SECONDS


def _redraw(shown: _Shown, done: threading.Event) -> None:
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(shown.line())) as status:
        while not done.wait(_REDRAW_SECONDS):
            status.update(Text(shown.line()))
