"""Threads where the system may refuse one: limits on processes (`ulimit -u`, a control group's) and on memory."""

from __future__ import annotations

import threading
from collections.abc import Callable

from scorer.errors import DeviceError

_REFUSED = "can't start new thread"  # Python's words for it


def is_refused(error: BaseException) -> bool:
    """Whether the error is that the system starts no thread."""
    return isinstance(error, RuntimeError) and str(error) == _REFUSED


def no_thread() -> DeviceError:
    """The error where the system starts no thread and one is needed."""
    return DeviceError("the system starts no more threads", remedy="allow more processes (ulimit -u) or more memory")


def fewer_threads(started: int, wanted: int) -> str:
    """What a user is told where the system starts fewer than wanted."""
    return f"the system starts {started} of {wanted} threads: a limit on processes or memory"


def start_threads(count: int, run: Callable[[], object], name: str) -> list[threading.Thread]:
    """Daemon threads that call `run`: `count` of them, or as many as the system starts, and that may be none."""
    started: list[threading.Thread] = []
    for number in range(count):
        thread = threading.Thread(target=run, daemon=True, name=f"{name} {number}")
        try:
            thread.start()
        except RuntimeError as error:
            if not is_refused(error):
                raise
            break
        started.append(thread)
    return started


def startable(count: int) -> int:
    """How many of `count` more threads the system starts at once: so many are started, and end."""
    done = threading.Event()
    started = start_threads(count, done.wait, "trial")
    done.set()
    for thread in started:
        thread.join()
    return len(started)
