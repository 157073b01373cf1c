"""How many ids occur again, counted from a key of each row's id once all rows are there, in flat memory."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

import numpy as np

from scorer.kernels import loops
from scorer.kernels.limits import KEYED_ID_BYTES
from scorer.kernels.packed import PackedStrings

_BLOCK_ROWS = 1 << 13
_PASS_ROWS = 1 << 19  # keys sorted at once: 4 MB, and as much to gather them


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

    One pass over the file per 524,288 rows, each sorting the keys of one remainder class.
    """
    passes = -(-rows // _PASS_ROWS)
    return sum(_duplicates_among(keys, rows, passes, remainder) for remainder in range(passes))


def _duplicates_among(keys: BinaryIO, rows: int, passes: int, remainder: int) -> int:
    keys.seek(0)
    picked = []
    for start in range(0, rows, _BLOCK_ROWS):
        block = np.fromfile(keys, "<u8", min(_BLOCK_ROWS, rows - start))
        picked.append(block[block % np.uint64(passes) == remainder] if passes > 1 else block)
    among = np.concatenate(picked)
    among.sort()
    return int(np.count_nonzero(among[1:] == among[:-1]))
