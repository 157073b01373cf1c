"""Threads where the system may refuse one: limits on processes (`ulimit -u`, a control group's) and on memory."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, TypeVar

from scorer.errors import DeviceError

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

_REFUSED = "can't start new thread"  # Python's words for it
_AHEAD = 2  # items for each thread, and one that the caller waits for


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


def map_in_order(function: Callable[[T], R], items: Iterable[T], threads: int, name: str) -> Generator[R]:
    """`function` of each item, in order, computed in `threads` threads, or as many as the system starts; in the
    caller's where it starts none. A few items a thread are read ahead.
    """
    from concurrent.futures import Future

    todo: queue.SimpleQueue[tuple[Future[R], T] | None] = queue.SimpleQueue()
    started = start_threads(threads, lambda: _compute(function, todo), name)
    if not started:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(Future())
            todo.put((waiting[-1], item))
            if len(waiting) > _AHEAD * len(started):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for _ in started:
            todo.put(None)
        for thread in started:
            thread.join()


def _compute(function: Callable[[T], R], todo: queue.SimpleQueue[tuple[Future[R], T] | None]) -> None:
    while (task := todo.get()) is not None:
        result, item = task
        try:
            result.set_result(function(item))
        except BaseException as error:
            result.set_exception(error)
