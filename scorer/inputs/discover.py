"""Which shards a command means: from names, patterns and folders."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Sequence

from scorer.errors import InputError, UsageError

_SHARD_SUFFIX = "*.tfrecord"


def find_shards(names: Sequence[str], output: str | None = None) -> list[str]:
    """The shards that `names` stand for, in the order given; a pattern's or folder's files in the order of their names.

    A name is a file, a folder (its *.tfrecord files), or a pattern that the shell left to us, `**` included.

    Raises:
        InputError: no such file, nothing that matches, no regular file, or one that may not be read.
        UsageError: a shard given twice, under whatever name, or one that is also the output.
    """
    shards = [path for name in names for path in _expand(name)]
    _check_distinct(shards, output)
    return shards


def absolute(path: str) -> str:
    """`path` from the root of the file system. Raises InputError where the working folder was removed."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise InputError(f"{path}: the working folder is gone", remedy="change to another") from None


def _expand(name: str) -> Iterable[str]:
    if os.path.isdir(name):
        return _found(name, os.path.join(glob.escape(name), _SHARD_SUFFIX), f"no {_SHARD_SUFFIX} in it")
    if glob.has_magic(name) and not os.path.lexists(name):
        return _found(name, name, "no file matches")
    return [name]


def _found(name: str, pattern: str, otherwise: str) -> list[str]:
    """What `pattern` matches but for folders, which `**` gives and nobody asked to score."""
    paths = [path for path in sorted(glob.glob(pattern, recursive=True)) if not os.path.isdir(path)]
    if not paths:
        raise InputError(f"{name}: {otherwise}", remedy="check the path")
    return paths


def _check_distinct(shards: Iterable[str], output: str | None) -> None:
    seen: dict[tuple[int, int], str] = {}
    target = output and identity(output)
    for path in shards:
        found = _checked_identity(path)
        if found == target:
            raise UsageError(f"{path} is a shard and the output {output} too", remedy="choose another output")
        if found in seen:
            raise UsageError(f"{path} and {seen[found]} are the same shard", remedy="give it once")
        seen[found] = path


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of the file at `path`; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _checked_identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise InputError(f"{path}: {reason}", remedy="check the path") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file", remedy="copy what it gives into a file")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: permission denied", remedy="make it readable")
    return status.st_dev, status.st_ino
