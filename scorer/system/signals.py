"""The first SIGINT or SIGTERM asks the job to stop after the batch in hand; a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TypeVar

from scorer.system.terminal import takes_escapes
from scorer.system.threads import start_threads

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STDERR = 2
_SHOW_CURSOR = "\033[?25h"  # the progress bar hides it


class StopRequest:
    """A request to stop: set once, asked for often.

    No lock is in it, as one is in `threading.Event`: a signal handler runs in the main thread, between two of its
    instructions, and would wait for ever for a lock that the main thread holds at that moment.

    signal: the number of the signal that set it, 0 where none did. quiet: whether a live display shows the request, in
    which a line of the handler's would be overwritten.
    """

    def __init__(self) -> None:
        self.signal = 0
        self.quiet = False
        self._is_set = False

    def set(self, signal: int = 0) -> None:
        """Ask to stop; from any thread, and from a signal handler."""
        self.signal, self._is_set = signal, True

    def is_set(self) -> bool:
        """Whether to stop."""
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """Whether to stop, in so many seconds from now; a request does not cut them short."""
        time.sleep(seconds)
        return self._is_set

    @contextmanager
    def shown_elsewhere(self) -> Iterator[None]:
        """Within, a signal prints nothing where standard error is a terminal."""
        self.quiet = os.isatty(_STDERR)
        try:
            yield
        finally:
            self.quiet = False

    @property
    def exit_code(self) -> int:
        """128 and the signal's number, as shells report it."""
        return 128 + self.signal


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Within, signals end the process at once, even while it is in a library that never returns to Python.

    One that is ignored stays ignored.
    """
    heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, signal.SIG_DFL) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruptible(action: Callable[[], T]) -> T:
    """What `action` gives or raises, for programs that wait for Ctrl-C as they like.

    Called in the main thread, `action` runs in another one: Python has signals handled in the main thread and between
    two of its own instructions, which never come while a library keeps that thread. Where a handler raises, as Python's
    own raises KeyboardInterrupt, `action` is left behind and ends with the process. (ONNX Runtime ends that by SIGABRT
    where the program catches the exception and runs to its end.) Where the system starts no thread it runs in this one.
    """
    if threading.current_thread() is not threading.main_thread():
        return action()
    from concurrent.futures import Future  # the help of a command needs none

    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(action())
        except BaseException as error:
            result.set_exception(error)

    return result.result() if start_threads(1, run, "opening") else action()


@contextmanager
def stop_on_signals(command: str = "score", meanwhile: str = "committing the batch in hand") -> Iterator[StopRequest]:
    """Within, signals set the request and tell the user on standard error what `command` does meanwhile.

    One that whoever started the process has it ignore, as shells do for jobs in the background, stays ignored.
    Ending at once loses nothing that counts: a commit is whole or not there (scorer/outputs/sink.py).
    """
    stop = StopRequest()
    show_cursor = _SHOW_CURSOR if takes_escapes(sys.stderr) else ""

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            _write_stderr(f"{command}: stopped at once{show_cursor}")
            os._exit(128 + number)
        stop.set(number)
        if not stop.quiet:
            _write_stderr(f"{command}: {signal.Signals(number).name}: {meanwhile}; once more stops at once")

    heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _write_stderr(line: str) -> None:
    """Past Python's buffers, which a signal handler may find in use."""
    with suppress(OSError):
        os.write(_STDERR, f"{line}\n".encode())
