"""Standard error: lines for a person, printed where they can be.

Nothing here may decide how a command ends: where standard error is closed or broken, what it was to say is lost.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from scorer.errors import printable


def hold_standard_descriptors() -> None:
    """Open those of 0, 1 and 2 that are closed, or the next file, the output say, gets what is printed on them."""
    for descriptor, mode in enumerate((os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)):  # writing to 1 must still fail
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest free number, which is `descriptor`
    if sys.stderr is None:
        _silence()


def print_stderr(line: str) -> None:
    """Print `line` on standard error if it can be."""
    if sys.stderr is None:  # print() would take standard output
        return
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        _silence()


def _silence() -> None:
    """Python's exit would fail on what a broken stream still buffers."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    """Print (name, value) pairs in two columns on standard error; names stand out where that is a terminal."""
    width = max(len(name) for name, _ in lines) + 2
    bold, plain = ("\033[1m", "\033[0m") if sys.stderr.isatty() else ("", "")
    for name, value in lines:
        print_stderr(f"{bold}{name:<{width}}{plain}{printable(value)}")
