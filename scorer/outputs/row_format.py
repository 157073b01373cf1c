"""What a form of the rows is: predictions to bytes, a whole batch at a time. docs/formats.md has each in full."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import ModelError, UsageError
from scorer.kernels.packed import PackedStrings

Labels: TypeAlias = NDArray[np.int64]
Scores: TypeAlias = NDArray[np.float32]
Pack: TypeAlias = Callable[[BinaryIO, Callable[[bytes], object]], None]
"""Reads the bytes of all rows from a file and passes the output's on, piece by piece. What comes of the same rows
depends on nothing else, not on the batches that they came in."""


@dataclass(frozen=True)
class RowOptions:
    """What of a prediction is written.

    threshold: labels of a lower confidence, as float32, are left out. names: of each label; None for rows without.
    """

    threshold: float = 0.0
    names: Sequence[str] | None = None


PLAIN = RowOptions()


class RowFormat(Protocol):
    """How predictions become the bytes of an output. A new one is one module, registered with `register_format`."""

    @property
    def header(self) -> bytes:
        """What stands before the first row; may be empty."""

    @property
    def pack(self) -> Pack | None:
        """How the rows become the output once they are all there; None where they are the output as they stand."""

    def rows(self, ids: PackedStrings, labels: Labels, scores: Scores) -> bytes:
        """The rows of n videos, whatever n is and whatever came before.

        Args:
            ids: n ids.
            labels: int64 (n, k), best first.
            scores: float32 (n, k) in [0, 1], descending.

        Raises:
            ModelError: a score that is not in [0, 1].
        """


def check_fit(ids: PackedStrings, labels: Labels, scores: Scores) -> None:
    """Raises UsageError for shapes that do not belong together."""
    if labels.ndim != 2 or labels.shape != scores.shape or len(ids) != len(labels):
        raise UsageError(f"{len(ids)} ids, labels {labels.shape} and scores {scores.shape} do not make rows")


def check_rows(ids: PackedStrings, labels: Labels, scores: Scores) -> None:
    """Raises ModelError for a score that is not in [0, 1], UsageError for shapes that do not belong together."""
    check_fit(ids, labels, scores)
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):  # a NaN fails both
        row = np.flatnonzero(~((scores >= 0) & (scores <= 1)).all(axis=1))[0]
        raise ModelError(f"the scores of video {ids.split()[row]!r} are not in [0, 1]", remedy="export the model again")


def kept_labels(scores: Scores, threshold: float) -> NDArray[np.int64]:
    """int64 (n,): how many of each video's labels, best first, have at least this confidence."""
    counts: NDArray[np.int64] = np.sum(scores >= np.float32(threshold), axis=1, dtype=np.int64)
    return counts
