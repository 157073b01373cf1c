"""Decoded videos in memory-mapped files: for data larger than memory, and for the next run on the same shards.

A cache is a folder named after the shards' paths, sizes and times and what is read of them. It holds 0.npy, 1.npy ...
(float32 features of each input, with room to spare), labels.npy (int32), ids (one after the other), ends.npy (int64,
where each id ends) and digests.json (CRC32C of each of these, of features as far as there are videos). It is used where
its files are this user's own and are what they must be.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorer.errors import InputError
from scorer.inputs.source import Source
from scorer.kernels import loops
from scorer.outputs.own import open_own

_FORMAT = 2


def name_of(shards: Sequence[Source], *what: object) -> str:
    """The folder's name."""
    digest = hashlib.sha256(repr((_FORMAT, what)).encode())
    for shard in shards:
        digest.update(repr((shard.canonical, shard.stat.size, shard.stat.version)).encode())
    return digest.hexdigest()[:16]


def make_arrays(folder: Path, shapes: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
    """Files to be filled, mapped. Their disk space is taken at once: a disk that is full later would be a crash.

    They take the place of earlier ones, whose arrays stay as they are. Raises OSError.
    """
    arrays: list[NDArray[np.float32]] = []
    for index, shape in enumerate(shapes):
        path = folder / f"{index}.npy"
        path.unlink(missing_ok=True)
        arrays.append(np.lib.format.open_memmap(path, "w+", np.float32, shape))
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return arrays


def write_rest(
    folder: Path, features: Sequence[NDArray[np.float32]], labels: NDArray[np.int32], ids: Sequence[bytes]
) -> None:
    """Write what stands beside the arrays of `make_arrays`, of which `features` is filled. Raises OSError."""
    ends = np.cumsum([len(id) for id in ids], dtype=np.int64)
    np.save(folder / "labels.npy", labels)
    np.save(folder / "ends.npy", ends)
    (folder / "ids").write_bytes(b"".join(ids))
    (folder / "digests.json").write_text(json.dumps(_digests(features, labels, ends, b"".join(ids))))


def read(
    folder: Path, widths: Sequence[int], labels_below: int
) -> tuple[list[NDArray[np.float32]], NDArray[np.int32], list[bytes]]:
    """Features (n, width) each, mapped; labels (n, P) and n ids in memory. Raises InputError for a damaged cache."""
    try:
        labels: NDArray[np.int32] = _array(folder / "labels.npy", np.int32, 2)
        ends: NDArray[np.int64] = _array(folder / "ends.npy", np.int64, 1)
        ids = _own(folder / "ids").read_bytes()
        features = [
            _array(folder / f"{index}.npy", np.float32, 2, mapped=True)[: len(labels)] for index in range(len(widths))
        ]
        if [values.shape for values in features] != [(len(labels), width) for width in widths]:
            raise ValueError("its features have other shapes")
        if len(ends) != len(labels) or (np.diff(ends, prepend=0) < 0).any() or int(ends.max(initial=0)) != len(ids):
            raise ValueError("its ids do not fit")
        if labels.min(initial=0) < -1 or labels.max(initial=0) >= labels_below:
            raise ValueError("labels out of range")
        if json.loads(_own(folder / "digests.json").read_text()) != _digests(features, labels, ends, ids):
            raise ValueError("its contents have other digests")
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{folder}: damaged cache: {error}", remedy="delete it") from None
    edges = [0, *ends.tolist()]
    return features, labels, [ids[start:end] for start, end in pairwise(edges)]


def _own(path: Path) -> Path:
    """`path`, a regular file of this user's own. Raises OSError."""
    os.close(open_own(path, os.O_RDONLY))
    return path


def _array(path: Path, dtype: type[np.generic], axes: int, *, mapped: bool = False) -> NDArray:
    """The array in a file of NumPy's format 1.0, as `np.save` writes it. Raises OSError, ValueError for anything else.

    NumPy's own reader takes minutes over headers that were made for that, and raises whatever its tokenizer does.
    """
    with open(path, "rb", opener=lambda name, flags: open_own(Path(name), flags)) as file:
        found = _HEADER.match(file.read(_LONGEST_HEADER))
        kind = np.dtype(dtype)
        if found is None or found["type"].decode() != kind.str:
            raise ValueError(f"{path.name} is no array of {kind}")
        shape, start = tuple(map(int, found["shape"].split(b", "))), found.end()
        if len(shape) != axes or int.from_bytes(found["size"], "little") != start - _MAGIC_BYTES:
            raise ValueError(f"{path.name} is no array with {axes} axes")
        if start + math.prod(shape) * kind.itemsize != os.fstat(file.fileno()).st_size:
            raise ValueError(f"{path.name} has not the size of its array")
        if mapped:  # mode "c" makes pages private once written: PyTorch wants memory that it may write to
            return np.memmap(file, kind, "c", start, shape)
        file.seek(start)
        return np.fromfile(file, kind).reshape(shape)


def _digests(
    features: Sequence[NDArray[np.float32]], labels: NDArray[np.int32], ends: NDArray[np.int64], ids: bytes
) -> list[int]:
    """CRC32C of each, of features block by block."""
    found = [loops.active.crc32c(part.tobytes()) for part in (labels, ends)] + [loops.active.crc32c(ids)]
    for values in features:
        digest = 0
        for first in range(0, len(values), _ROWS):
            digest = loops.active.crc32c(np.ascontiguousarray(values[first : first + _ROWS]).data, digest)
        found.append(digest)
    return found


_ROWS = 4096
_MAGIC_BYTES, _LONGEST_HEADER = 10, 512
_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<size>..){'descr': '(?P<type><[fi][48])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>\d{1,15}(, \d{1,15})?),?\), } *\n",
    re.DOTALL,
)
"""Of numpy.lib.format: before the array, what it is."""
