"""How many ids occur again, counted from a key of each row's id once all rows are there.

Time is linear and memory flat. Up to _SORTED_AT_ONCE keys are sorted in memory. More are first dealt out, by their
leading bits, to ranges of a temporary file: a read to count how many go to each, then a read that sorts them in pieces,
drops those repeated within a piece and writes the rest. Each range is then counted the same way. Keys are as good as
random, so that ranges fit into memory at once for a billion rows: a key is read three times, written once and sorted
twice among so many, where the floor is to read it once. Ids chosen to have keys of equal leading bits cost that
again for each _MOST_BITS of the 64.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from scorer.kernels import loops
from scorer.kernels.limits import KEYED_ID_BYTES
from scorer.kernels.packed import PackedStrings

_SORTED_AT_ONCE = 1 << 19  # keys: 4 MB
_MOST_BITS = 12  # 4,096 ranges, to each of which a piece still adds 1 KB


def id_keys(ids: PackedStrings) -> bytes:
    """A 64-bit key per id: distinct for distinct ids of up to 8 bytes, and with a chance of 2^-64 a pair beyond."""
    packed = loops.active.id_keys(ids)
    if not (long := np.flatnonzero(ids.sizes > KEYED_ID_BYTES)).size:
        return packed
    keys, names = np.frombuffer(packed, "<u8").copy(), ids.split()
    for row in long.tolist():
        keys[row] = int.from_bytes(hashlib.blake2b(names[row], digest_size=8).digest(), "little")
    return keys.tobytes()


def count_duplicates(keys: BinaryIO, rows: int) -> int:
    """How many of the first `rows` keys in the file stand there already: rows less distinct keys.

    Beyond half a million rows that takes a temporary file of up to 8 bytes a row. It has no name, and is in the folder
    of `keys` where that has one. OSError where it cannot be written.
    """
    folder = os.path.dirname(keys.name) or "." if isinstance(keys.name, str) else None
    return _repeated(_Keys(keys, 0, rows, 0, 64), folder)


@dataclass(frozen=True)
class _Keys:
    """`count` keys of a file from the `first` on, all in low..low + 2^bits - 1."""

    file: BinaryIO
    first: int
    count: int
    low: int
    bits: int

    def pieces(self) -> Iterator[NDArray[np.uint64]]:
        """All of them, some at a time."""
        for start in range(0, self.count, _SORTED_AT_ONCE):
            self.file.seek(8 * (self.first + start))
            yield np.fromfile(self.file, "<u8", min(_SORTED_AT_ONCE, self.count - start))


def _repeated(keys: _Keys, folder: str | None) -> int:
    """How many less are distinct."""
    if keys.count <= _SORTED_AT_ONCE:
        return sum(len(piece) - len(_distinct(piece)) for piece in keys.pieces())
    if keys.bits == 0:
        return keys.count - 1
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        ranges = _deal_out(keys, file)
        left = sum(each.count for each in ranges)
        return keys.count - left + sum(_repeated(each, folder) for each in ranges)


def _deal_out(keys: _Keys, file: BinaryIO) -> list[_Keys]:
    """Write the keys to `file`, those of a range together; those that are equal within a piece once."""
    bits = min(keys.bits, _MOST_BITS, (2 * keys.count // _SORTED_AT_ONCE).bit_length())
    rest = keys.bits - bits
    counts = sum(np.bincount(_leading(piece, keys.low, rest), minlength=1 << bits) for piece in keys.pieces())
    ends = np.cumsum(counts) - counts  # of the range as far as it is written, in keys
    firsts = ends.tolist()
    for piece in keys.pieces():
        distinct = _distinct(piece)
        borders = np.searchsorted(_leading(distinct, keys.low, rest), np.arange((1 << bits) + 1))
        for i in np.flatnonzero(np.diff(borders)).tolist():
            part = distinct[borders[i] : borders[i + 1]]
            _write(file.fileno(), part.tobytes(), 8 * int(ends[i]))
            ends[i] += len(part)
    return [
        _Keys(file, first, end - first, keys.low + (i << rest), rest)
        for i, (first, end) in enumerate(zip(firsts, ends.tolist(), strict=True))
        if end > first
    ]


def _write(descriptor: int, data: bytes, offset: int) -> None:
    while data:
        size = os.pwrite(descriptor, data, offset)
        data, offset = data[size:], offset + size


def _leading(keys: NDArray[np.uint64], low: int, rest: int) -> NDArray[np.int64]:
    """What is above the lowest `rest` bits of each key less `low`."""
    above = keys - np.uint64(low)
    above >>= np.uint64(rest)
    return above.view(np.int64)


def _distinct(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The keys, which are sorted in place, each once."""
    keys.sort()
    return keys[np.concatenate([[True], keys[1:] != keys[:-1]])] if len(keys) else keys
