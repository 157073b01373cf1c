"""The first SIGINT or SIGTERM asks the job to stop after the batch in hand; a second one stops the process at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest(threading.Event):
    """Set by the first signal, whose number it keeps."""

    signal = 0

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells report it."""
        return 128 + self.signal


@contextmanager
def stop_on_signals(told: Callable[[str], None]) -> Iterator[StopRequest]:
    """Within, signals set the request; `told` gets a line for the user.

    Stopping at once loses nothing that counts: a commit is whole or not there (scorer/commit.py).
    """
    stop = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            told("stopped at once")
            os._exit(128 + number)
        stop.signal = number
        told(f"{signal.Signals(number).name}: committing the batch in hand; once more stops at once")
        stop.set()

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
