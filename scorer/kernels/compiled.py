"""The loops in C, as scorer.kernels.loops.Loops. ImportError where they are not there or do not serve."""

from __future__ import annotations

import numpy as np
from numpy import ascontiguousarray as contiguous
from numpy.typing import NDArray

import scorer.kernels.native as native
from scorer.kernels import limits
from scorer.kernels.packed import PackedStrings, check_shapes

NAME = "compiled"

_FUNCTIONS = (
    "decode",
    "decode_frames",
    "decode_bare_frames",
    "decode_files",
    "find_record",
    "find_header",
    "check_predictions",
    "count_metrics",
    "metric_records",
    "count_unknown",
    "id_keys",
    "format_rows",
    "crc32c",
    "sum_frames",
)
_stale = any(getattr(limits, name, None) != value for name, value in native.LIMITS.items())
if _stale or not all(hasattr(native, name) for name in _FUNCTIONS):  # an editable install with newer sources
    raise ImportError("compiled from other sources; install the package again")


decode, decode_frames, decode_bare_frames = native.decode, native.decode_frames, native.decode_bare_frames
decode_files, find_record = native.decode_files, native.find_record


def find_header(data: memoryview) -> int:
    return native.find_header(data)


def check_predictions(labels: NDArray[np.int64], scores: NDArray[np.float32], label_count: int) -> int:
    return native.check_predictions(*_contiguous(labels, scores), len(labels), label_count)


def format_rows(ids: PackedStrings, labels: NDArray[np.int64], scores: NDArray[np.float32]) -> bytes:
    return native.format_rows(ids.data, ids.sizes, *_contiguous(labels, scores))


def metric_records(labels: NDArray[np.int64], scores: NDArray[np.float32], truth: PackedStrings) -> bytes:
    return native.metric_records(*_contiguous(labels, scores), truth.data, truth.sizes)


def count_unknown(truth: PackedStrings, label_count: int) -> int:
    return native.count_unknown(truth.data, label_count)


def count_metrics(
    records: NDArray[np.void], up_to: NDArray[np.int64], first: NDArray[np.int64], histogram: NDArray[np.int64]
) -> int:
    return native.count_metrics(records, len(first), up_to, first, histogram)


def id_keys(ids: PackedStrings) -> bytes:
    return native.id_keys(ids.data, ids.sizes)


def sum_frames(frames: memoryview, header: bytes, first: int, last: int, sums: NDArray[np.uint32]) -> int:
    return native.sum_frames(frames, header, first, last, sums)


def crc32c(data: bytes | memoryview, crc: int = 0) -> int:
    return native.crc32c(data, crc)


def _contiguous(
    labels: NDArray[np.int64], scores: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    check_shapes(labels, scores)
    return contiguous(labels), contiguous(scores)
