"""Files of a run, absent or complete, with the errors of those who fill them as an OutputError."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from scorer.errors import OutputError
from scorer.outputs.atomic import replacing, writing


def replace_file(path: Path, fill: Callable[[Path], object]) -> None:
    """Have `fill` write a file and rename it to `path` once it is on the disk. Raises OutputError."""
    with replacing(path) as part, writing(path):
        try:
            fill(part)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def remove_file(path: Path) -> None:
    """Remove `path` if it is there. Raises OutputError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be removed: {error.strerror}", remedy="choose another folder for the run"
        ) from None
