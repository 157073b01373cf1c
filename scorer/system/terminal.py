"""Standard error: lines for a person, printed where they can be.

Nothing here may decide how a command ends: where standard error is closed or broken, what it was to say is lost.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

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


def takes_escapes(stream: TextIO | None) -> bool:
    """Whether `stream` is a terminal that may get escape codes: not one called "dumb", and not under NO_COLOR."""
    if stream is None or os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") in ("dumb", "unknown"):
        return False
    return stream.isatty()


def columns_of(stream: TextIO) -> int | None:
    """The columns of the terminal `stream`; None where it is none, and lines may be as long as they are."""
    if not stream.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def print_lines(lines: Sequence[tuple[str, str]]) -> None:
    """Print (name, value) pairs in two columns on standard error.

    Names stand out where that is a terminal, and values continue below themselves, broken between words: a number that
    the terminal breaks is another number.
    """
    import textwrap

    indent = max(len(name) for name, _ in lines) + 2
    width = columns_of(sys.stderr) if sys.stderr else None
    bold, plain = ("\033[1m", "\033[0m") if takes_escapes(sys.stderr) else ("", "")
    for name, value in lines:
        value = printable(value)
        if width is not None:
            room = max(width - indent, 20)
            broken = textwrap.wrap(value, room, break_long_words=False, break_on_hyphens=False)
            value = f"\n{' ' * indent}".join(broken)
        print_stderr(f"{bold}{name:<{indent}}{plain}{value}")
