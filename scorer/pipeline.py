"""Stages that overlap: a stage in a thread of its own, and a stage of several ordered lanes.

Threads are enough: ONNX Runtime and NumPy's large operations release Python's lock. Every queue is bounded, order is
kept, an error surfaces where the item it belongs to would have, and closing the last stage ends them all.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_POLL_SECONDS = 0.1  # how soon a stage that waits notices that it is to end
_STUCK_SECONDS = 2.0  # what a job that was told to stop waits for a stage, say one that reads a hanging file system


@dataclass(frozen=True)
class _Item(Generic[T]):
    value: T


@dataclass(frozen=True)
class _End:
    error: BaseException | None


def ahead(source: Generator[T], depth: int, stop: threading.Event | None = None) -> Generator[T]:
    """The items of `source`, made in a thread that runs at most `depth` items ahead.

    Ends early once `stop` is set, even where `source` is stuck. An error in `source` is raised after the items before
    it.
    """
    items: queue.Queue[_Item[T] | _End] = queue.Queue(depth)
    closed = threading.Event()
    thread = threading.Thread(target=_produce, args=(source, items, closed), daemon=True)
    thread.start()
    try:
        while (item := _next(items, stop)) is not None:
            if isinstance(item, _Item):
                yield item.value
            elif item.error is not None:
                raise item.error
            else:
                return
    finally:
        closed.set()
        thread.join(None if stop is None or not stop.is_set() else _STUCK_SECONDS)


def _produce(source: Generator[T], items: queue.Queue[_Item[T] | _End], closed: threading.Event) -> None:
    end = _End(None)
    try:
        with closing(source):
            for value in source:
                if not _put(items, _Item(value), closed):
                    return
    except BaseException as error:
        end = _End(error)
    _put(items, end, closed)


def _put(items: queue.Queue[_Item[T] | _End], item: _Item[T] | _End, closed: threading.Event) -> bool:
    """Whether the item was taken before the consumer closed."""
    while not closed.is_set():
        try:
            items.put(item, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False


def _next(items: queue.Queue[_Item[T] | _End], stop: threading.Event | None) -> _Item[T] | _End | None:
    """The next item, or None once `stop` is set."""
    while stop is None or not stop.is_set():
        try:
            return items.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
    return None


def in_lanes(work: Callable[[T], R], source: Generator[T], lanes: int) -> Generator[R]:
    """`work(item)` for each item of `source`, in order, up to `lanes` at once and one more item waiting for a lane."""
    failure: BaseException | None = None
    pending: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="lane")
    try:
        with closing(source):
            while True:
                try:
                    item = next(source)
                except StopIteration:
                    break
                except Exception as error:  # after what was read before it
                    failure = error
                    break
                pending.append(pool.submit(work, item))
                if len(pending) > lanes:
                    yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failure is not None:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
