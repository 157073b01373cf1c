"""Which files of a folder are its shards: those with a shard's extension, all of one."""

from __future__ import annotations

from collections.abc import Iterable

from scorer.errors import InputError

SUFFIXES = (".tfrecord", ".tfrecord.gz", ".parquet", ".arrow", ".feather")


def is_shard(name: str) -> bool:
    """Whether a folder's file of this name or path is one of its shards. Hidden files are none."""
    return bool(_suffix(name)) and not name.rpartition("/")[2].startswith(".")


def check_folder(folder: str, files: Iterable[str]) -> None:
    """Raise InputError where a folder's shards are none, or of several kinds: one may be made of the other."""
    first: dict[str, str] = {}
    for file in files:
        first.setdefault(_suffix(file), file.rpartition("/")[2])
    if not first:
        raise InputError(
            f"{folder}: no shard in it ({', '.join(SUFFIXES)})", remedy="check the path, or name the files"
        )
    if len(first) > 1:
        found = " and ".join(f"{suffix} files ({name})" for suffix, name in sorted(first.items()))
        pattern = f"'{folder.rstrip('/')}/*{min(first)}'"
        raise InputError(f"{folder}: there are {found} in it", remedy=f"name those you mean with a pattern: {pattern}")


def _suffix(name: str) -> str:
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
