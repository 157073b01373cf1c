"""Files and folders that are absent or complete: written aside, flushed to the disk, then renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from scorer.errors import OutputError


def replace_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` write a file and rename it to `path` once it is on the disk. Raises OutputError.

    It is written in a folder of its own, since safetensors leaves files of its own naming there when it is killed; the
    next save clears them.
    """
    folder = path.parent / ".saving"
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        fill(folder / path.name)
        flush(folder / path.name)
        os.replace(folder / path.name, path)
        flush(path.parent)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        remedy = "make room or choose another folder with --runs"
        raise OutputError(f"{path}: cannot be written: {reason}", remedy=remedy) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_file(path: Path) -> None:
    """Remove `path` if it is there. Raises OutputError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        remedy = "choose another folder with --runs"
        raise OutputError(f"{path}: cannot be removed: {error.strerror}", remedy=remedy) from None


@contextmanager
def new_folder(place: Path) -> Iterator[Path]:
    """A folder to be filled, which is `place` afterwards unless another process has made that meanwhile.

    Raises OutputError when it cannot be made or filled.
    """
    part = place.with_name(f".{place.name}.{os.getpid()}")
    try:
        part.mkdir(parents=True)
        yield part
        for path in part.iterdir():
            flush(path)
        _rename_folder(part, place)
    except OSError as error:
        reason = error.strerror or error
        raise OutputError(
            f"{place}: cannot be written: {reason}", remedy="make room or choose another folder"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _rename_folder(part: Path, place: Path) -> None:
    try:
        part.rename(place)
    except OSError:
        if not place.is_dir():
            raise


def flush(path: Path) -> None:
    """Have what was written to the file or folder `path` reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
