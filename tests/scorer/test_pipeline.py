"""Stages overlap, keep order, pass errors on in their place, and end when they are closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from scorer.pipeline import ahead, in_lanes


def numbers(count: int, *, fail: bool = False, closed: list[bool] | None = None) -> Generator[int]:
    try:
        yield from range(count)
        if fail:
            raise ValueError("at the end")
    finally:
        if closed is not None:
            closed.append(True)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name != "MainThread"}


def test_all_items_come_in_order() -> None:
    before = threads()
    assert list(ahead(numbers(100), 3)) == list(range(100))
    assert threads() == before


def test_lanes_keep_the_order_however_long_an_item_takes() -> None:
    def slow(item: int) -> int:
        time.sleep((item * 7 % 5) / 1000)
        return item * 10

    assert list(in_lanes(slow, numbers(50), 4)) == [item * 10 for item in range(50)]


def test_lanes_work_at_the_same_time() -> None:
    both = threading.Barrier(2, timeout=60)
    assert list(in_lanes(lambda item: (both.wait(), item)[1], numbers(6), 2)) == list(range(6))


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_error_in_the_source_comes_after_the_items_before_it(lanes: int) -> None:
    items = ahead(in_lanes(lambda item: item, ahead(numbers(10, fail=True), 2), lanes), 2)
    assert [next(items) for _ in range(10)] == list(range(10))
    with pytest.raises(ValueError, match="at the end"):
        next(items)


@pytest.mark.parametrize("lanes", [1, 3])
def test_an_error_in_a_lane_comes_after_the_items_before_it_and_ends_the_source(lanes: int) -> None:
    closed: list[bool] = []
    items = in_lanes(lambda item: 1 // (item - 5), numbers(1000, closed=closed), lanes)
    assert [next(items) for _ in range(5)] == [-1] * 5
    with pytest.raises(ZeroDivisionError):
        next(items)
    assert closed == [True]


def test_the_source_is_never_far_ahead() -> None:
    made = 0

    def source() -> Generator[int]:
        nonlocal made
        for item in range(1000):
            made += 1
            yield item

    items = ahead(source(), 2)
    next(items)
    time.sleep(0.05)
    assert made <= 4  # one taken, two waiting, one in hand
    items.close()


def test_closing_ends_every_stage() -> None:
    before, closed = threads(), list[bool]()
    items = ahead(in_lanes(lambda item: item, ahead(numbers(10**9, closed=closed), 2), 2), 2)
    assert next(items) == 0
    items.close()
    assert closed == [True]
    assert threads() == before


def test_a_stop_ends_the_items_though_the_source_is_stuck() -> None:
    stuck, stop = threading.Event(), threading.Event()

    def source() -> Generator[int]:
        yield 1
        stuck.wait()

    items = ahead(source(), 1, stop)
    assert next(items) == 1
    stop.set()
    assert list(items) == []
    stuck.set()
