"""Work overlaps, comes out in order, passes errors on in their place, and ends when it is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from itertools import chain, count

import pytest

from scorer.errors import DeviceError
from scorer.pipeline.ordered import in_order
from scorer.system.signals import StopRequest
from tests.scorer.threads import allow_threads, no_threads_left


def numbers(end: int, *, fail: bool = False, closed: list[bool] | None = None) -> Generator[int]:
    try:
        yield from range(end)
        if fail:
            raise ValueError("at the end")
    finally:
        if closed is not None:
            closed.append(True)


def same(item: int) -> int:
    return item


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    with no_threads_left():
        yield


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(("max_in_flight", "coalesce"), [(1, 1), (3, 1), (3, 2), (100, 7), (100, 1000)])
def test_all_results_come_in_order_however_long_one_takes(threads: int, max_in_flight: int, coalesce: int) -> None:
    def slow(item: int) -> int:
        time.sleep((item * 7 % 5) / 2000)
        return item * 10

    results = in_order(slow, numbers(50), threads, max_in_flight, coalesce=coalesce)
    assert list(chain.from_iterable(results)) == [item * 10 for item in range(50)]


def test_nothing_comes_of_nothing() -> None:
    assert list(in_order(same, numbers(0), 3, 5)) == []


def test_threads_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=60)
    assert list(in_order(lambda item: (both.wait(), item)[1], numbers(6), 2, 4)) == [[item] for item in range(6)]


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_the_source_comes_after_the_results_before_it(threads: int) -> None:
    results = in_order(same, numbers(10, fail=True), threads, 4)
    assert [next(results) for _ in range(10)] == [[item] for item in range(10)]
    with pytest.raises(ValueError, match="at the end"):
        next(results)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_the_work_comes_after_the_results_before_it_and_ends_the_source(threads: int) -> None:
    closed: list[bool] = []
    results = in_order(lambda item: 1 // (item - 5), numbers(1000, closed=closed), threads, 4)
    assert [next(results) for _ in range(5)] == [[-1]] * 5
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert closed == [True]


def test_results_that_come_fast_come_together() -> None:
    assert list(in_order(same, numbers(10), 2, 100, coalesce=4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_no_more_results_are_waited_for_than_may_be_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorer.pipeline.ordered._POLL_SECONDS", 3600.0)
    found: list[list[int]] = []
    results = in_order(same, numbers(100), 2, 4, coalesce=1000)
    consumer = threading.Thread(target=found.extend, args=(results,), daemon=True)
    consumer.start()
    consumer.join(60)
    assert [len(some) for some in found] == [4] * 25


def test_a_result_does_not_wait_long_for_others() -> None:
    slow = threading.Event()
    results = in_order(lambda item: (item < 2 or slow.wait(60), item)[1], numbers(3), 2, 100, coalesce=3)
    assert next(results) == [0, 1]
    slow.set()
    assert list(results) == [[2]]


def test_a_stop_gives_what_is_done_once() -> None:
    stop, slow = StopRequest(), threading.Event()
    timers = [threading.Timer(0.02, stop.set), threading.Timer(0.5, slow.set)]
    results = in_order(lambda item: (item < 2 or slow.wait(60), item)[1], numbers(4), 4, 100, stop, coalesce=10)
    for timer in timers:
        timer.start()
    assert list(results) == [[0, 1]]
    for timer in timers:
        timer.join()


def test_an_error_comes_after_the_results_that_come_with_it() -> None:
    results = in_order(same, numbers(3, fail=True), 2, 100, coalesce=10)
    assert next(results) == [0, 1, 2]
    with pytest.raises(ValueError, match="at the end"):
        next(results)


def test_no_more_than_may_be_is_in_flight() -> None:
    made = count()
    results = in_order(lambda item: next(made), numbers(1000), 3, 4)
    next(results)
    time.sleep(0.05)
    assert next(made) <= 1 + 4
    results.close()


def test_closing_early_ends_threads_and_source() -> None:
    closed: list[bool] = []
    results = in_order(same, numbers(10**9, closed=closed), 3, 5)
    assert next(results) == [0]
    results.close()
    assert closed == [True]


def test_a_stop_ends_the_results_though_the_source_is_stuck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorer.pipeline.ordered._STUCK_SECONDS", 0.01)
    stuck, stop = threading.Event(), StopRequest()
    closed: list[bool] = []

    def source() -> Generator[int]:
        yield 1
        stuck.wait()
        closed.append(True)

    results = in_order(same, source(), 2, 3, stop)
    assert next(results) == [1]
    stop.set()
    assert list(results) == []
    assert not closed
    stuck.set()
    while threading.active_count() > 1 and not closed:
        time.sleep(0.01)
    join_own()


def join_own(*others: threading.Thread) -> None:
    """Wait for the threads of `in_order` and for `others`; those of servers that earlier tests had stay for minutes."""
    for thread in (*others, *threading.enumerate()):
        if thread in others or thread.name.startswith("predict"):
            thread.join()


def test_a_stop_while_it_waits_for_a_stuck_source_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error ends the results, and the signal comes while the other thread is still waited for."""
    monkeypatch.setattr("scorer.pipeline.ordered._STUCK_SECONDS", 0.01)
    reading, stuck, stop = threading.Event(), threading.Event(), StopRequest()

    def source() -> Generator[int]:
        yield 1
        reading.set()
        stuck.wait()

    results = in_order(lambda item: item // (1 - reading.wait()), source(), 2, 3, stop)
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert stop.is_set()
    stuck.set()
    join_own(timer)


def test_fewer_threads_where_the_system_starts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    allow_threads(monkeypatch, 2)
    results = in_order(same, numbers(50), 5, 10, log=said.append)
    assert [item for some in results for item in some] == [*range(50)]
    assert said == ["the system starts 2 of 5 threads: a limit on processes or memory"]


def test_an_error_where_it_starts_none(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    source = numbers(50, closed=closed)
    next(source)
    allow_threads(monkeypatch, 0)
    with pytest.raises(DeviceError, match="the system starts no more threads"):
        next(in_order(same, source, 5, 10))
    assert closed


def test_a_thread_that_the_work_needs_and_does_not_get() -> None:
    def refused(item: int) -> int:
        if item == 3:
            raise RuntimeError("can't start new thread")
        return item

    results = in_order(refused, numbers(50), 2, 10)
    assert [next(results) for _ in range(3)] == [[0], [1], [2]]
    with pytest.raises(DeviceError, match="the system starts no more threads"):
        next(results)
