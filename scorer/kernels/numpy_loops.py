"""The loops in NumPy, as scorer.kernels.loops.Loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.kernels.limits import BIN_SHIFT, HALF_BINS, KEYED_ID_BYTES
from scorer.kernels.numpy_rows import format_rows
from scorer.kernels.packed import PackedStrings, check_shapes, metric_record, unpack_varints

__all__ = [
    "NAME",
    "check_predictions",
    "count_metrics",
    "count_unknown",
    "crc32c",
    "decode",
    "decode_bare_frames",
    "decode_files",
    "decode_frames",
    "find_header",
    "find_record",
    "format_rows",
    "id_keys",
    "metric_records",
    "sum_frames",
]

Ints: TypeAlias = NDArray[np.int64]
Floats32: TypeAlias = NDArray[np.float32]

NAME = "numpy"

decode = decode_frames = decode_bare_frames = decode_files = None
find_header = find_record = None

_UNKNOWN = 1 << 31  # labels from here on belong to no model
_TRUTHS_AT_ONCE = 1 << 16
_KEY_WORDS = np.arange(1, KEYED_ID_BYTES // 8 + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # one a word


def check_predictions(labels: Ints, scores: Floats32, label_count: int) -> int:
    check_shapes(labels, scores)
    good = ((labels >= 0) & (labels < label_count) & (scores >= 0) & (scores <= 1)).all(axis=1)  # a NaN is neither
    good &= (scores[:, 1:] <= scores[:, :-1]).all(axis=1)
    ordered = np.sort(labels, axis=1)
    good &= (ordered[:, 1:] != ordered[:, :-1]).all(axis=1)
    return -1 if good.all() else int(good.argmin())


def metric_records(labels: Ints, scores: Floats32, truth: PackedStrings) -> bytes:
    check_shapes(labels, scores)
    if len(truth) != len(labels):
        raise ValueError(f"labels of {len(truth)} videos and {len(labels)} rows")
    hits, positives = find_hits(labels, *unpack_varints(truth))
    known = positives > 0
    records = np.empty(int(known.sum()), metric_record(labels.shape[1]))
    records["hits"], records["positives"], records["scores"] = hits[known], positives[known], scores[known]
    return records.tobytes()


def count_unknown(truth: PackedStrings, label_count: int) -> int:
    values, _ = unpack_varints(truth)
    return int(np.count_nonzero(values.view(np.uint64) >= label_count))


def find_hits(labels: Ints, label_values: Ints, label_splits: Ints) -> tuple[NDArray[np.bool_], Ints]:
    """Which predictions (n, k), all in 0..2^31-1, are true, and each video's number of distinct true labels (n,).

    The true labels of row i are label_values[label_splits[i]:label_splits[i + 1]].
    """
    rows, values = _distinct(label_values[label_splits[0] : label_splits[-1]], np.diff(label_splits))
    hits = np.zeros(labels.shape, bool)
    for start in range(0, len(rows), _TRUTHS_AT_ONCE):
        part = slice(start, start + _TRUTHS_AT_ONCE)
        truths, places = np.nonzero(labels[rows[part]] == values[part, None])
        hits[rows[part][truths], places] = True
    return hits, np.bincount(rows, minlength=len(labels))


def _distinct(values: Ints, lengths: Ints) -> tuple[Ints, Ints]:
    """The row and value of every true label, each once; values that no model has become others that none has."""
    unknown = (values < 0) | (values >= _UNKNOWN)
    if unknown.any():
        values = values.copy()
        values[unknown] = _UNKNOWN + np.unique(values[unknown], return_inverse=True)[1]
    keys = np.repeat(np.arange(len(lengths)) << 32, lengths) + values
    keys.sort()
    if len(keys):
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
    return keys >> 32, keys & 0xFFFFFFFF


def count_metrics(records: NDArray[np.void], up_to: Ints, first: Ints, histogram: Ints) -> int:
    hits, positives, scores = records["hits"], records["positives"].astype(np.int64), records["scores"]
    if not ((positives > 0).all() and ((scores >= 0) & (scores <= 1)).all()):
        raise ValueError("no such metric records")
    count_hits(hits, positives, up_to, first)
    bins = _bins(scores)
    np.add.at(histogram[0], bins.ravel(), 1)
    np.add.at(histogram[1], bins[hits], 1)
    return int(positives.sum())


def count_hits(hits: NDArray[np.bool_], positives: Ints, up_to: Ints, first: Ints) -> None:
    """Add up the hits (n, k) of n videos with so many positives (n,), each at least 1, as Metrics counts them."""
    depth, so_far = len(up_to), np.cumsum(hits, axis=1)
    found, places = np.nonzero(hits[:, :depth])
    np.add.at(up_to, (np.minimum(positives[found], depth) - 1, places), so_far[found, places])
    last = np.minimum(positives, len(first)) - 1
    np.add.at(first, last, so_far[np.arange(len(hits)), last])


def _bins(scores: Floats32) -> Ints:
    """The bin of each score in [0, 1], ascending: the leading bits of p below 1/2, above it those of 1 - p (exact)."""
    upper = scores >= 0.5
    small = np.where(upper, 1 - scores, scores + np.float32(0)).astype(np.float32)  # -0 becomes 0
    bins = (small.view(np.int32) >> BIN_SHIFT).astype(np.int64)
    return np.where(upper, 2 * HALF_BINS + 1 - bins, bins)


def id_keys(ids: PackedStrings) -> bytes:
    return _keys_of([name[:KEYED_ID_BYTES] for name in ids.split()]).tobytes()


def _keys_of(ids: Sequence[bytes]) -> NDArray[np.uint64]:
    words = np.array(ids, dtype=f"S{KEYED_ID_BYTES}").view("<u8").reshape(len(ids), len(_KEY_WORDS))
    keys = np.zeros(len(ids), "<u8")
    for column in range(words.shape[1]):
        if not (filled := words[:, column] != 0).any():
            break  # ids hold no NUL, so nothing follows
        keys += np.where(filled, _mixed(words[:, column] ^ _KEY_WORDS[column]), np.uint64(0))
    return keys


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection whose every bit depends on every bit."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)


def sum_frames(frames: memoryview, header: bytes, first: int, last: int, sums: NDArray[np.uint32]) -> int:
    stride = len(header) + len(sums)
    if len(frames) % stride:
        return -1
    rows = np.frombuffer(frames, np.uint8).reshape(-1, stride)
    if (rows[:, : len(header)] != np.frombuffer(header, np.uint8)).any():
        return -1
    sums += rows[first:last, len(header) :].sum(axis=0, dtype=np.uint32)
    return len(rows)


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    return _crc32c()(data, crc)


@cache
def _crc32c() -> Callable[[bytes | memoryview, int], int]:
    """Imported when first needed: it takes 10 ms, and compiled loops do without."""
    from crc32c import crc32c

    return crc32c
