"""Where the system starts no more threads there are fewer, and one line where there are none."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from scorer.cli.command import run
from scorer.errors import DeviceError
from scorer.model.cuda import OwnThread
from scorer.system.phases import phase
from scorer.system.signals import interruptible
from scorer.system.threads import is_refused, map_in_order, start_threads, startable
from tests.scorer.threads import allow_threads, no_threads_left


@pytest.mark.parametrize("most", [0, 2, 9])
def test_as_many_as_the_system_starts(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    allow_threads(monkeypatch, most)
    with no_threads_left():
        assert startable(5) == min(most, 5)


@pytest.mark.parametrize("most", [0, 1, 3, 9])
def test_results_come_in_order_from_however_many_threads(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    allow_threads(monkeypatch, most)
    here, used, read = threading.get_ident(), set[int](), list[int]()

    def doubled(number: int) -> int:
        used.add(threading.get_ident())
        return 2 * number

    with no_threads_left():
        for count, result in enumerate(map_in_order(doubled, map_noted(range(100), read), 5, "x")):
            assert result == 2 * count
            assert len(read) <= count + 1 + 2 * min(most, 5)
    assert len(used) <= min(most, 5) if most else used == {here}


def map_noted(numbers: Iterable[int], read: list[int]) -> Iterator[int]:
    for number in numbers:
        read.append(number)
        yield number


@pytest.mark.parametrize("most", [0, 3])
def test_the_first_error_in_order_ends_a_map_and_its_threads(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    allow_threads(monkeypatch, most)
    found: list[float] = []
    with no_threads_left(), pytest.raises(ZeroDivisionError):
        found.extend(map_in_order(lambda number: 6 / (3 - number), range(9), 3, "x"))
    assert found == [2, 3, 6]
    with no_threads_left(), closing(map_in_order(str, range(99), 3, "x")) as left:
        assert next(left) == "0"


def test_another_error_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("threads can only be started once")

    monkeypatch.setattr(threading.Thread, "start", fail)
    with pytest.raises(RuntimeError, match="only be started once"):
        start_threads(1, print, "x")
    assert not is_refused(MemoryError("can't start new thread"))


def test_a_command_ends_in_one_line(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    allow_threads(monkeypatch, 0)
    assert run("score", {}, lambda: len(list(ThreadPoolExecutor(1).map(int, "1")))) == DeviceError.exit_code
    assert capfd.readouterr().err == (
        "score: the system starts no more threads; allow more processes (ulimit -u) or more memory\n"
    )
    with pytest.raises(RuntimeError, match="something else"):
        run("score", {}, lambda: (_ for _ in ()).throw(RuntimeError("something else")))


def test_what_does_without_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    allow_threads(monkeypatch, 0)
    assert interruptible(threading.get_ident) == threading.get_ident()
    with phase("train", "working") as at:
        at(0.5)
    with pytest.raises(DeviceError, match="the system starts no more threads"):
        OwnThread("cuda:0")
