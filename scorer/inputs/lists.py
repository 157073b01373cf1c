"""Names of shards out of a list: `@list.txt`, or `@-` for standard input."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from functools import cache

from scorer.errors import InputError

_MARK = "@"


def expand_lists(names: Iterable[str]) -> Iterator[str]:
    """`names`, with what a list names in the place of each that starts with "@". Raises InputError.

    A list has a name a line, or, where there is a NUL in it, a name before each NUL, as `find -print0` writes them.
    Empty ones are skipped, and one that starts with "@" is a file's.
    """
    for name in names:
        if name.startswith(_MARK):
            yield from _listed(name)
        else:
            yield name


def _listed(name: str) -> list[str]:
    content = _content(name)
    lines = content.split(b"\0") if b"\0" in content else [line.removesuffix(b"\r") for line in content.split(b"\n")]
    names = [os.fsdecode(line) for line in lines if line]
    if not names:
        raise InputError(f"{name}: no shard is named in it", remedy="check the list")
    return names


def _content(name: str) -> bytes:
    path = name.removeprefix(_MARK)
    try:
        if path == "-":
            return _standard_input()
        with open(path, "rb") as file:
            return file.read()
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise InputError(f"{name}: {reason}", remedy="check the path") from None


@cache
def _standard_input() -> bytes:
    """All of it; kept, since a command may look its shards up more than once."""
    return sys.stdin.buffer.read() if sys.stdin else b""
