"""Predictions -> bytes of the predictions file, a whole batch at a time.

A row is `id,label confidence label confidence ...`, the form of youtube-8m's starter code: `%i %f` pairs joined by a
space, confidences with six decimals. docs/formats.md has the format in full.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from scorer.errors import ModelError, UsageError
from scorer.kernels import loops
from scorer.kernels.packed import PackedStrings

HEADER = b"VideoId,LabelConfidencePairs\n"


def format_rows(ids: PackedStrings, labels: NDArray[np.int64], scores: NDArray[np.float32]) -> bytes:
    """The rows of n videos: the same bytes as `scorer.kernels.numpy_rows.format_rows_plain`.

    Args:
        ids: n ids.
        labels: int64 (n, k).
        scores: float32 (n, k) in [0, 1].

    Raises:
        ModelError: a score that is not in [0, 1].
        UsageError: shapes that do not belong together.
    """
    _check(ids, labels, scores)
    return loops.active.format_rows(ids, labels, scores)


def _check(ids: PackedStrings, labels: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
    if labels.ndim != 2 or labels.shape != scores.shape or len(ids) != len(labels):
        raise UsageError(f"{len(ids)} ids, labels {labels.shape} and scores {scores.shape} do not make rows")
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):  # a NaN fails both
        row = np.flatnonzero(~((scores >= 0) & (scores <= 1)).all(axis=1))[0]
        raise ModelError(f"the scores of video {ids.split()[row]!r} are not in [0, 1]", remedy="export the model again")
