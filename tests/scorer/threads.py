"""Threads in tests: a system that starts only so many, and that none is left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def allow_threads(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Have the system start no thread where `most` of those started from now on live, as a limit on processes does."""
    start, started = threading.Thread.start, list[threading.Thread]()

    def limited(thread: threading.Thread) -> None:
        if sum(other.is_alive() for other in started) >= most:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)


@contextmanager
def no_threads_left() -> Iterator[None]:
    """No thread that is started in here outlasts it. Those of servers that earlier tests had end whenever they do."""
    before = {*threading.enumerate()}
    yield
    assert {*threading.enumerate()} <= before
