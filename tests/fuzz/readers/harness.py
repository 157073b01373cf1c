"""Gives a reader damaged and forged inputs, and holds it to its promise: done, or an error of ours, soon and in bounds.

An input follows from a seed and its own number alone, so that a line of the results is enough to make it again.
"""

from __future__ import annotations

import json
import os
import re
import resource
import select
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from itertools import count as numbers
from pathlib import Path
from random import Random
from typing import Any

from scorer.errors import Yt8mError

READERS = {
    "checkpoint": "weights",
    "run": "weights",
    "soft_labels": "weights",
    "decoded_cache": "weights",
    "onnx": "models",
    "metadata": "models",
    "journal": "unfinished",
    "part": "unfinished",
    "vocabulary": "texts",
    "list": "texts",
    "parquet": "columns",
    "arrow": "columns",
    "compressed": "records",
    "example": "records",
    "frames": "records",
}
"""Name -> the module beside this one that has a function `make_NAME`."""

ADDRESS_SPACE = 4 << 30
"""Bytes that a reader may take beyond what it starts with, before the system refuses: no input may end the machine."""
DEADLINE = 60.0
"""Seconds for one input, on a machine that has other work; the slowest of each reader stands in the results."""
_WARM_UP = 20
_MOST_FAILURES = 10


@dataclass(frozen=True)
class FuzzedReader:
    """What is attacked.

    make: an input out of random numbers. read: has it read; raises `refusals` for what is wrong with it, and
    AssertionError where what was read breaks a promise. mib: by how many MiB one input may let the resident memory grow
    meanwhile. kept: by how many all that one process reads may let it grow.
    """

    make: Callable[[Random], bytes]
    read: Callable[[bytes], object]
    mib: int
    kept: int = 64
    refusals: tuple[type[Exception], ...] = (Yt8mError,)


@dataclass
class Results:
    """Of the inputs so far. outcomes: how many ended how. mib, seconds: the most that one took."""

    outcomes: Counter[str] = field(default_factory=Counter)
    mib: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def add(self, outcome: str, mib: float, seconds: float) -> None:
        self.outcomes[outcome] += 1
        self.mib, self.seconds = max(self.mib, mib), max(self.seconds, seconds)


def reader(name: str, folder: Path) -> FuzzedReader:
    """The reader called so; its files lie in `folder`, which is empty."""
    make: Callable[[Path], FuzzedReader] = getattr(import_module(f"tests.fuzz.readers.{READERS[name]}"), f"make_{name}")
    return make(folder)


def attempt(target: FuzzedReader, seed: int, number: int) -> tuple[str, float, float]:
    """Have input `number` read: the outcome, the MiB by which memory grew, and seconds. Raises what must not be."""
    data = target.make(Random(f"{seed} {number}"))
    reset_peak()
    before, began = memory("VmRSS"), time.monotonic()
    outcome = "read"
    try:
        target.read(data)
    except target.refusals as refusal:
        _check_line(refusal)
        outcome = type(refusal).__name__
    seconds, grown = time.monotonic() - began, (memory("VmHWM") - before) / 1024
    assert grown < target.mib, f"memory grew by {grown:.0f} MiB, more than {target.mib}"
    return outcome, grown, seconds


def _check_line(refusal: Exception) -> None:
    """An error of ours is one line, which a terminal may be given."""
    if isinstance(refusal, Yt8mError):
        line = str(refusal)
        assert line.isprintable(), f"not one printable line: {line!r}"
        assert len(line) < 4096, f"a line of {len(line):,} letters: {line[:200]!r} ..."


def try_all(name: str, seed: int, first: int, count: int, folder: Path) -> Results:
    """Inputs `first` to `first` + `count` - 1 in this process. Raises what must not be, with a note of the input."""
    target, results = reader(name, folder), Results()
    _warm_up(target)
    for number in range(first, first + count):
        try:
            results.add(*attempt(target, seed, number))
        except BaseException as error:
            error.add_note(f"reader {name}, seed {seed}, input {number}")
            raise
    return results


def watch(name: str, seed: int, first: int, seconds: float, deadline: float = DEADLINE) -> Results:
    """Inputs from `first` on for so many seconds, in a process that is watched: one that hangs or dies is a failure."""
    results, end = Results(), time.monotonic() + seconds
    while time.monotonic() < end and len(results.failures) < _MOST_FAILURES:
        done = 0
        with tempfile.TemporaryDirectory() as folder:
            child, lines = _start(name, seed, first, end, Path(folder))
            try:
                for line in _lines(lines, deadline):
                    done += 1
                    if "results" in line:
                        results.add(*line["results"])
                        continue
                    results.failures.append(f"{name}: seed {seed}, input {first + done - 1}: {line['failure']}")
                    if len(results.failures) == _MOST_FAILURES:
                        os.kill(child, signal.SIGKILL)
                        _ended(child)
                        return results
                why = _ended(child)
            except TimeoutError:
                os.kill(child, signal.SIGKILL)
                _ended(child)
                why = f"no answer within {deadline:.0f} s"
        first += done
        if why:
            results.failures.append(f"{name}: seed {seed}, input {first}: {why}")
            first += 1
    return results


def _start(name: str, seed: int, first: int, end: float, folder: Path) -> tuple[int, int]:
    """A process that tries inputs until `end`, and the pipe with a line for each."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        with open(writing, "w", buffering=1) as pipe:
            _work(name, seed, first, end, folder, lambda line: pipe.write(json.dumps(line) + "\n"))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _work(
    name: str, seed: int, first: int, end: float, folder: Path, report: Callable[[dict[str, Any]], object]
) -> None:
    target = reader(name, folder)
    _warm_up(target)
    limit = memory("VmSize") * 1024 + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    start = memory("VmRSS")
    for number in numbers(first):
        if time.monotonic() > end:
            break
        try:
            report({"results": attempt(target, seed, number)})
        except Exception:
            report({"failure": _shortened(traceback.format_exc())})
        grown = (memory("VmRSS") - start) / 1024
        assert grown < target.kept, f"memory has grown by {grown:.0f} MiB in all, more than {target.kept}"


def _warm_up(target: FuzzedReader) -> None:
    """Imports and buffers are no input's fault."""
    for number in range(_WARM_UP):
        with suppress(Exception):
            target.read(target.make(Random(number)))


def _shortened(text: str) -> str:
    """A traceback whose lines fit a screen; numbers and texts of hostile inputs do not."""
    return "\n".join(line[:300] for line in text.splitlines()[-24:])


def _lines(pipe: int, deadline: float) -> Iterator[dict[str, Any]]:
    """The lines out of `pipe` until its end. Raises TimeoutError where none comes for so many seconds."""
    with open(pipe, "rb", buffering=0) as file:
        rest = b""
        while True:
            if not select.select([file], [], [], deadline)[0]:
                raise TimeoutError
            if not (more := file.read(1 << 16)):
                return
            *whole, rest = (rest + more).split(b"\n")
            yield from map(json.loads, whole)


def _ended(child: int) -> str:
    """How the process ended; empty where it ended well."""
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return f"the process died of {signal.Signals(os.WTERMSIG(status)).name}"
    return f"the process ended with {os.WEXITSTATUS(status)}" if os.WEXITSTATUS(status) else ""


def reset_peak() -> None:
    """Have VmHWM count from now (proc(5), clear_refs), where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory(what: str) -> int:
    """KiB of this process, by its name in /proc/self/status; 0 on systems that have no such file."""
    with suppress(OSError):
        found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) if found else 0
    return 0
