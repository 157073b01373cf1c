"""Which shards a command means: from names, patterns, folders, and addresses of other kinds."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence

from scorer.errors import InputError, UsageError
from scorer.inputs.addresses import is_address
from scorer.inputs.empty import EmptyShard
from scorer.inputs.folders import check_folder, is_shard
from scorer.inputs.lists import expand_lists
from scorer.inputs.source import LocalFile, Source, absolute, status_of

_SCHEMES: dict[str, Callable[[str], Iterable[Source]]] = {}


def register_scheme(scheme: str, find: Callable[[str], Iterable[Source]]) -> None:
    """Have `find` look up addresses that start with `scheme://`, patterns and folders included.

    `find` gives the sources that an address stands for, in the order of their names, and raises InputError.
    """
    _SCHEMES[scheme] = find


def find_shards(names: Sequence[str], output: str | None = None, *, allow_empty: bool = False) -> list[Source]:
    """The shards that `names` stand for, in the order given; a pattern's or folder's files in the order of their names.

    A name is a file, a folder (its shards: see scorer.inputs.folders), a pattern that the shell left to us, `**`
    included, an address (s3://bucket/folder), or "@" and the name of a list of such names ("-" is standard input). Each
    local file is stat'ed once.

    Args:
        allow_empty: a shard of 0 bytes has no records; it is damaged else.

    Raises:
        InputError: no such file, nothing that matches, no regular file, or one that may not be read; a folder of
            several kinds of shards.
        UsageError: a shard given twice, under whatever name, or one that is also the output.
    """
    shards = [shard for name in expand_lists(names) for shard in _expand(name, output)]
    _check_distinct(shards)
    if output is not None:
        check_shards_apart(shards, output)
    return [EmptyShard(shard) if allow_empty and not shard.stat.size else shard for shard in shards]


def _expand(name: str, output: str | None) -> Iterable[Source]:
    scheme, separator, _ = name.partition("://")
    if separator and scheme in _SCHEMES:
        return _SCHEMES[scheme](name)
    if is_address(name) and not os.path.lexists(name):
        from scorer.inputs.remote import find

        return find(name, output)
    if glob.has_magic(name) and not os.path.lexists(name):
        return _matching(name)
    status = status_of(name)
    if stat.S_ISDIR(status.st_mode):
        return _inside(name, output)
    return [LocalFile.at(name, status)]


def _matching(pattern: str) -> list[LocalFile]:
    """What `pattern` matches except for folders, which `**` gives and nobody asked to score."""
    found = [*_files(sorted(glob.glob(pattern, recursive=True)))]
    if not found:
        raise InputError(f"{pattern}: no file matches", remedy="check the path")
    return found


def _inside(folder: str, output: str | None) -> list[LocalFile]:
    """The shards of a folder, which the output is none of: a job that is resumed may have it there already."""
    paths = filter(is_shard, glob.glob(os.path.join(glob.escape(folder), "*")))
    own = output and absolute(output)
    found = [*_files(sorted(path for path in paths if absolute(path) != own))]
    check_folder(folder, [shard.address for shard in found])
    return found


def _files(paths: Iterable[str]) -> Iterator[LocalFile]:
    for path in paths:
        status = status_of(path)
        if not stat.S_ISDIR(status.st_mode):
            yield LocalFile.at(path, status)


def check_shards_apart(shards: Iterable[Source], output: str) -> None:
    """Raises UsageError where the output would replace a shard."""
    target: Hashable = output if is_address(output) else identity(output)
    for shard in shards:
        if target is not None and shard.identity == target:
            raise UsageError(f"{shard.address} is a shard and the output {output} too", remedy="choose another output")


def _check_distinct(shards: Iterable[Source]) -> None:
    seen: dict[Hashable, str] = {}
    for shard in shards:
        if shard.identity in seen:
            first = seen[shard.identity]
            raise UsageError(f"{shard.address} and {first} are the same shard", remedy="give it once")
        seen[shard.identity] = shard.address


def identity(path: str) -> tuple[int, int] | None:
    """Device and inode of the file at `path`; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino
