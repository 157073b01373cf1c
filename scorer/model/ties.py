"""Labels of one score: the lower one first, on every provider.

ONNX's TopK promises that order, and CUDA's kernels do not keep it: from some 1,000 labels on they sort by radix, which
puts equals in any order and, where equals lie on both sides of the border, takes any of them. Scores of half precision
are often equal. So such a provider is asked for SPARE more labels than wanted, and the order among equals is made here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.model.predictor import Predictions

SPARE = 6
"""Labels beyond the k best that are looked at; more equals than these at the border are rare, and cost a second run."""


def settle(found: Predictions, k: int, labels: int, every: Callable[[], Predictions]) -> Predictions:
    """The `k` best of `found`; `every` label decides where equal scores may continue beyond those found.

    Args:
        found: the best of n videos, `labels` or at least k + 1 of them, equals in any order.
        labels: how many the model has.
        every: gives all of them for the same videos.
    """
    predictions, rows = best(found, k), undecided(found, k)
    if len(rows) and found.scores.shape[1] < labels:
        scores, indices = every()
        decided = best(Predictions(scores[rows], indices[rows]), k)
        predictions.scores[rows], predictions.labels[rows] = decided
    return predictions


def best(found: Predictions, k: int) -> Predictions:
    """The first `k` of `found` (n, at least k), copied, the lower label first where scores are equal."""
    scores, labels = found.scores[:, :k].copy(), found.labels[:, :k].copy()
    border = found.scores[:, : k + 1]
    rows = np.flatnonzero((border[:, 1:] == border[:, :-1]).any(axis=1))
    if len(rows):
        order = np.lexsort((found.labels[rows], -found.scores[rows]))[:, :k]
        labels[rows] = np.take_along_axis(found.labels[rows], order, axis=1)
    return Predictions(scores, labels)


def undecided(found: Predictions, k: int) -> NDArray[Any]:
    """The rows of `found` whose score number `k` is the last one's too: labels that were not found may have it."""
    return np.flatnonzero(found.scores[:, k - 1] == found.scores[:, -1])
