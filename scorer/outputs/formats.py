"""Predictions -> bytes of the predictions file, a whole batch at a time.

A row is `id,label confidence label confidence ...`, the form of youtube-8m's starter code: `%i %f` pairs joined by a
space, confidences with six decimals. docs/formats.md has the format in full.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scorer.errors import ModelError, UsageError
from scorer.kernels import loops
from scorer.kernels.packed import PackedStrings


class RowFormat(Protocol):
    """How predictions become the bytes of an output. A new one is one module, registered with `register_format`."""

    @property
    def name(self) -> str:
        """As users say it, and as a completion record has it."""

    @property
    def header(self) -> bytes:
        """What stands before the first row; may be empty."""

    def rows(self, ids: PackedStrings, labels: NDArray[np.int64], scores: NDArray[np.float32]) -> bytes:
        """The rows of n videos, whatever n is and whatever came before.

        Args:
            ids: n ids.
            labels: int64 (n, k), best first.
            scores: float32 (n, k) in [0, 1].

        Raises:
            ModelError: a score that is not in [0, 1].
        """


_formats: dict[str, RowFormat] = {}


def register_format(row_format: RowFormat) -> None:
    """Have outputs of the format with this name written by it."""
    _formats[row_format.name] = row_format


def find_format(name: str) -> RowFormat:
    """The format of that name. Raises UsageError, which lists those that there are."""
    if name not in _formats:
        raise UsageError(f"there is no format {name!r}", remedy=f"choose one of {', '.join(sorted(_formats))}")
    return _formats[name]


class Pairs:
    """The official form of YouTube-8M's starter code."""

    name = "pairs"
    header = b"VideoId,LabelConfidencePairs\n"

    def rows(self, ids: PackedStrings, labels: NDArray[np.int64], scores: NDArray[np.float32]) -> bytes:
        return format_rows(ids, labels, scores)


register_format(Pairs())


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
