"""What is known only at the end, from notes of a fixed width per row kept on disk: duplicate ids and the metrics.

Ids are counted once all rows are there, in blocks of a fixed size, so that memory stays flat; metrics on the way, and
from the notes only by a job that goes on. It gives the same figures to the last bit as one that was not interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from numpy import ascontiguousarray as contiguous
from numpy.typing import NDArray

from scorer.evaluation.metrics import Metrics, find_hits, note
from scorer.inputs.example import unpacked
from scorer.kernels.compiled import native
from scorer.kernels.packed import PackedStrings

_BLOCK_ROWS = 1 << 13
_PASS_ROWS = 1 << 19  # keys sorted at once: 4 MB, and as much to gather them
_LONG_ID = 64  # bytes; longer ids are hashed one by one
_WORDS = np.arange(1, _LONG_ID // 8 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # one constant a word


def id_keys(ids: PackedStrings) -> bytes:
    """A 64-bit key per id: distinct for distinct ids of up to 8 bytes, and with a chance of 2^-64 a pair beyond."""
    packed = _short_keys(ids.split()) if native is None else native.keys(ids.data, ids.sizes)
    if not (long := np.flatnonzero(ids.sizes > _LONG_ID)).size:
        return packed
    keys, names = np.frombuffer(packed, "<u8").copy(), ids.split()
    for row in long.tolist():
        keys[row] = int.from_bytes(hashlib.blake2b(names[row], digest_size=8).digest(), "little")
    return keys.tobytes()


def _short_keys(ids: Sequence[bytes]) -> bytes:
    """Of ids of up to _LONG_ID bytes; whatever for others."""
    fields = np.array([name[:_LONG_ID] for name in ids], dtype=f"S{_LONG_ID}")
    words = fields.view("<u8").reshape(len(ids), len(_WORDS))
    keys = np.zeros(len(ids), np.uint64)
    for column in range(words.shape[1]):
        if not (filled := words[:, column] != 0).any():
            break  # ids hold no NUL, so nothing follows
        keys += np.where(filled, _mixed(words[:, column] ^ _WORDS[column]), np.uint64(0))
    return keys.tobytes()


def count_duplicates(keys: BinaryIO, rows: int) -> int:
    """How many of the first `rows` keys in the file stand there already: rows less distinct keys.

    One pass over the file per 524,288 rows, each sorting the keys of one remainder class.
    """
    passes = -(-rows // _PASS_ROWS)
    return sum(_duplicates_among(keys, rows, passes, remainder) for remainder in range(passes))


def observe(labels: NDArray[np.int64], scores: NDArray[np.float32], truth: PackedStrings) -> bytes:
    """What the metrics need of n videos; those without labels are left out.

    Args:
        labels, scores: int64 and float32 (n, k), best first.
        truth: their true labels, as packed varints.
    """
    if native is not None:
        made: bytes = native.notes(contiguous(labels), contiguous(scores), truth.data, truth.sizes)
        return made
    hits, positives = find_hits(labels, *unpacked(truth))
    known = positives > 0
    notes = np.empty(int(known.sum()), note(labels.shape[1]))
    notes["hits"], notes["positives"], notes["scores"] = hits[known], positives[known], scores[known]
    return notes.tobytes()


def measured(notes: BinaryIO, k: int) -> Metrics:
    """The metrics of everything that `observe` gave, read from the file."""
    metrics = Metrics(k)
    notes.seek(0)
    while len(block := np.fromfile(notes, note(k), _BLOCK_ROWS)):
        metrics.add_notes(block)
    return metrics


def _duplicates_among(keys: BinaryIO, rows: int, passes: int, remainder: int) -> int:
    keys.seek(0)
    picked = []
    for start in range(0, rows, _BLOCK_ROWS):
        block = np.fromfile(keys, "<u8", min(_BLOCK_ROWS, rows - start))
        picked.append(block[block % np.uint64(passes) == remainder] if passes > 1 else block)
    among = np.concatenate(picked)
    among.sort()
    return int(np.count_nonzero(among[1:] == among[:-1]))


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose every bit depends on every bit."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
