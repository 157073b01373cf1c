"""Decoded videos in memory-mapped files: for data larger than memory, and for the next run on the same shards.

A cache is a folder named after the shards' paths, sizes and times and what is read of them. It holds 0.npy, 1.npy ...
(float32 features of each input, with room to spare), labels.npy (int32) and ids (separated by NUL).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorer.errors import InputError
from scorer.inputs.source import Source

_FORMAT = 1


def name_of(shards: Sequence[Source], *what: object) -> str:
    """The folder's name."""
    digest = hashlib.sha256(repr((_FORMAT, what)).encode())
    for shard in shards:
        digest.update(repr((shard.canonical, shard.stat.size, shard.stat.version)).encode())
    return digest.hexdigest()[:16]


def make_arrays(folder: Path, shapes: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
    """Files to be filled, mapped. Their disk space is taken at once: a disk that is full later would be a crash.

    Raises OSError.
    """
    arrays: list[NDArray[np.float32]] = []
    for index, shape in enumerate(shapes):
        path = folder / f"{index}.npy"
        arrays.append(np.lib.format.open_memmap(path, "w+", np.float32, shape))
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return arrays


def write_rest(folder: Path, labels: NDArray[np.int32], ids: Sequence[bytes]) -> None:
    """Write what stands beside the arrays of `make_arrays`. Raises OSError."""
    np.save(folder / "labels.npy", labels)
    (folder / "ids").write_bytes(b"\0".join(ids))


def read(folder: Path) -> tuple[list[NDArray[np.float32]], NDArray[np.int32], list[bytes]]:
    """Features (n, width) each, mapped; labels (n, P) and n ids in memory. Raises InputError for a damaged cache."""
    try:
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        ids = (folder / "ids").read_bytes().split(b"\0") if len(labels) else []
        count = sum(path.stem.isdecimal() for path in folder.glob("*.npy"))
        # mode "c" makes pages private once written: PyTorch wants memory that it may write to
        features = [np.load(folder / f"{index}.npy", mmap_mode="c")[: len(labels)] for index in range(count)]
        if any(len(part) != len(labels) for part in (*features, ids)):
            raise ValueError("its parts differ in length")
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{folder}: damaged cache: {error}", remedy="delete it") from None
    return features, labels, ids
