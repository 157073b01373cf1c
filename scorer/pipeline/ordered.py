"""Work that overlaps and yet comes out in order: threads that share a source and work side by side.

Threads are enough: ONNX Runtime and NumPy's large operations release Python's lock. Each thread takes an item from the
source, works on it, and comes back, so what one reads is still in its core's cache when it works on it, and no time
goes into handing items from thread to thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from scorer.system.signals import StopRequest
from scorer.system.threads import fewer_threads, is_refused, no_thread, start_threads

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 0.1  # how soon the consumer notices that it is to stop
_STUCK_SECONDS = 2.0  # what a job that was told to stop waits for a thread, say one that reads a hanging file system


def in_order(
    work: Callable[[T], R],
    source: Generator[T],
    threads: int,
    max_in_flight: int,
    stop: StopRequest | None = None,
    coalesce: int = 1,
    log: Callable[[str], None] = lambda line: None,
) -> Generator[list[R]]:
    """`work(item)` for each item of `source`, in order, in `threads` threads, or in as many as the system starts.

    Args:
        max_in_flight: how many items may be worked on or waiting to be taken.
        stop: ends the results early, without an error, once it is set, even where `source` is stuck.
        coalesce: how many results come at once, where that many are done within a moment of the first.
        log: called with a line where there are fewer threads than wanted.

    Raises:
        DeviceError: the system starts no thread, or none for `source` or `work`.
        whatever `source` or `work` raised, after the results before it.
    """
    shared = _Shared(work, source, max_in_flight, coalesce)
    started = start_threads(threads, shared.run, "predict")
    try:
        if not started:
            raise no_thread()
        if len(started) < threads:
            log(fewer_threads(len(started), threads))
        yield from shared.results(stop)
    finally:
        shared.close()
        _join(started, stop)
        if not any(thread.is_alive() for thread in started):
            source.close()


def _join(threads: Iterable[threading.Thread], stop: StopRequest | None) -> None:
    """Wait for the threads, but once `stop` is set, be it meanwhile, not for those that are stuck."""
    deadline = math.inf
    for thread in threads:
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(_POLL_SECONDS)
            if stop is not None and stop.is_set():
                deadline = min(deadline, time.monotonic() + _STUCK_SECONDS)


@dataclass(frozen=True)
class _Result(Generic[R]):
    """What came of an item: a value, or an error, or (no value) that there was no item."""

    values: tuple[R, ...] = ()
    error: BaseException | None = None


class _Shared(Generic[T, R]):
    """The state that the threads of `in_order` share."""

    def __init__(self, work: Callable[[T], R], source: Generator[T], max_in_flight: int, coalesce: int) -> None:
        self._work, self._source = work, source
        self._max_in_flight = max_in_flight
        self._coalesce = min(coalesce, max_in_flight)  # or the threads and the consumer would wait for each other
        self._source_lock = threading.Lock()  # held by the thread that takes an item
        self._changed = threading.Condition()  # guards what follows
        self._done: dict[int, _Result[R]] = {}  # results that wait for those before them
        self._taken = 0  # items
        self._given = 0  # results that were taken by the consumer
        self._closed = False

    def run(self) -> None:
        """Take items and work on them until there are no more."""
        while (taken := self._take()) is not None:
            self._wake()
            index, item = taken
            try:
                result = _Result((self._work(item),))
            except BaseException as error:
                result = _Result[R](error=error)
                self.close()
            self._put(index, result)

    def results(self, stop: StopRequest | None) -> Generator[list[R]]:
        """The results in order, up to the first that is an error or the end."""
        while True:
            found = self._next(stop)
            if values := [value for result in found for value in result.values]:
                yield values
            if not found[-1].values:
                break
        if (error := found[-1].error) is not None:
            raise no_thread() if is_refused(error) else error

    def close(self) -> None:
        """Let nobody take another item."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self) -> tuple[int, T] | None:
        with self._source_lock:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._taken - self._given < self._max_in_flight)
                if self._closed:
                    return None
            index, self._taken = self._taken, self._taken + 1
            try:
                return index, next(self._source)
            except StopIteration:
                self._put(index, _Result())
            except BaseException as error:
                self._put(index, _Result(error=error))
            self.close()
            return None

    def _put(self, index: int, result: _Result[R]) -> None:
        with self._changed:
            self._done[index] = result
            if self._closed or self._taken - self._given >= self._max_in_flight or not result.values:
                self._changed.notify_all()

    def _wake(self) -> None:
        """Wake the consumer where there is enough for it; fewer results are found by its next look.

        It takes a core from a thread that works. Hence not for each result, and not from one that holds
        the source still: all others would wait for that one.
        """
        with self._changed:
            if len(self._done) >= self._coalesce:
                self._changed.notify_all()

    def _next(self, stop: StopRequest | None) -> list[_Result[R]]:
        """The next results, at least one; an empty one once `stop` is set."""
        first_seen = math.inf
        with self._changed:
            while not (ready := self._ready()) or (len(ready) < self._coalesce and ready[-1].values):
                now = time.monotonic()
                first_seen = min(first_seen, now if ready else math.inf)
                stopped = stop is not None and stop.is_set()
                if stopped and not ready:
                    return [_Result()]
                if stopped or now - first_seen > _POLL_SECONDS:
                    break
                self._changed.wait(_POLL_SECONDS)
            for index in range(self._given, self._given + len(ready)):
                del self._done[index]
            self._given += len(ready)
            self._changed.notify_all()
            return ready

    def _ready(self) -> list[_Result[R]]:
        """The results that are done, from the next on, up to one without a value."""
        ready: list[_Result[R]] = []
        while len(ready) < self._coalesce and (result := self._done.get(self._given + len(ready))) is not None:
            ready.append(result)
            if not result.values:
                break
        return ready
