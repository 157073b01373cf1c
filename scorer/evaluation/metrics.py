"""MAP@10, GAP, Hit@1 and PERR of top-k predictions against sparse labels.

Definitions, each over the videos that have at least one label:

- MAP@10: a video's average precision is the sum of the precision at each hit among its ten best, divided by
  min(positives, 10); MAP@10 is the mean (mean_average_precision_calculator.py of github.com/google/youtube-8m reads the
  same per class; the report takes it per video).
- GAP@k: the k best predictions of all videos in one list by descending confidence; the sum of the precision at each
  hit, divided by all positives (eval_util.py, `calculate_gap`). There the order of equal confidences is drawn at
  random; here its expectation is taken.
- Hit@1: how many videos have a label in first place (`calculate_hit_at_one`).
- PERR: the mean precision among a video's n best, n being its number of positives
  (`calculate_precision_at_equal_recall_rate`), capped at k since no more is known.

Positives are a video's distinct labels. A label that the model does not know is a positive that is never found.

eval_util.py differs in two more ways: a video without labels counts there, as one on which nothing is found, and PERR
passes over predictions of confidence 0, which here count as any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.kernels import loops
from scorer.kernels.limits import BINS, MAP_DEPTH
from scorer.kernels.numpy_loops import count_hits, find_hits
from scorer.kernels.packed import metric_record

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_BLOCK_RECORDS = 1 << 13
_EULER_GAMMA = 0.57721566490153286


class Metrics:
    """The metrics of a stream of batches, in memory that does not grow (4 MB).

    MAP@10, Hit@1 and PERR are exact. GAP takes confidences as equal when they fall into one bin of a histogram, whose
    bins are at most 0.1% of p or of 1 - p wide, whichever is smaller: under 1e-4 from the exact value in practice.

    Only whole numbers are added up, so that the result is the same to the last bit in whatever pieces videos come.
    """

    def __init__(self, k: int = 10) -> None:
        """For predictions of `k` labels per video."""
        self.k = k
        self.videos = 0
        self._positives = 0
        self._hits = _Hits.none(k)
        self._histogram = np.zeros((2, BINS), np.int64)  # rows: predictions, hits

    def add(self, records: NDArray[np.void]) -> None:
        """Add n labelled videos, each a `metric_record(k)`. ValueError for scores that are not in [0, 1]."""
        hits = self._hits
        self._positives += loops.active.count_metrics(records, hits.up_to, hits.first, self._histogram)
        self.videos += len(records)

    def result(self) -> dict[str, float]:
        """{"MAP@10", "GAP@k", "Hit@1", "PERR"}, each in [0, 1]; empty when no video had labels."""
        if not self.videos:
            return {}
        gap = _expected_gap(self._histogram[0, ::-1], self._histogram[1, ::-1], self._positives)
        return _named(self._hits.means(self.videos), gap, self.k)


def read_metrics(records: BinaryIO, k: int) -> Metrics:
    """The metrics of a file of metric records."""
    metrics = Metrics(k)
    records.seek(0)
    while len(block := np.fromfile(records, metric_record(k), _BLOCK_RECORDS)):
        metrics.add(block)
    return metrics


def exact_metrics(
    labels: Ints, scores: NDArray[np.float32], label_values: Ints, label_splits: Ints
) -> dict[str, float]:
    """The exact metrics of n videos at once; as `Metrics.result`.

    Args:
        labels: int64 (n, k), best first.
        scores: float32 (n, k) in [0, 1].
        label_values, label_splits: the true labels of row i are label_values[label_splits[i]:label_splits[i + 1]].
    """
    hits, positives = find_hits(labels, label_values, label_splits)
    known = positives > 0
    if not known.any():
        return {}
    counts = _Hits.none(labels.shape[1])
    count_hits(hits[known], positives[known], counts.up_to, counts.first)
    gap = global_average_precision(hits[known], scores[known], int(positives.sum()))
    return _named(counts.means(int(known.sum())), gap, labels.shape[1])


def global_average_precision(hits: NDArray[np.bool_], scores: NDArray[np.float32], positives: int) -> float:
    """GAP of predictions (n, k) with their `scores`; `positives` counts the true labels of all videos."""
    _, groups = np.unique(scores, return_inverse=True)
    totals = np.bincount(groups.ravel())
    found = np.bincount(groups.ravel()[hits.ravel()], minlength=len(totals))
    return _expected_gap(totals[::-1], found[::-1], positives)


@dataclass
class _Hits:
    """Hits counted over videos, from which all but GAP follows.

    up_to: int64 (depth, depth); of the videos with n positives, or more where n is the depth, and a hit at place i: the
    hits up to there, at [n - 1, i - 1]. The depth is that of MAP, or k if that is less.
    first: int64 (k,); of the videos with n positives, or more where n is k: the hits among the first n, at [n - 1].
    """

    up_to: Ints
    first: Ints

    @classmethod
    def none(cls, k: int) -> _Hits:
        depth = min(k, MAP_DEPTH)
        return cls(np.zeros((depth, depth), np.int64), np.zeros(k, np.int64))

    def means(self, videos: int) -> list[float]:
        """MAP, Hit@1 and PERR over so many videos."""
        places = np.arange(1, len(self.up_to) + 1)
        precision = self.up_to / places  # at each hit
        recall = self.first / np.arange(1, len(self.first) + 1)
        sums = (precision / places[:, None]).sum(), self.up_to[:, 0].sum(), recall.sum()
        return [float(total) / videos for total in sums]


def _named(means: list[float], gap: float, k: int) -> dict[str, float]:
    precision, hit, perr = means
    return {f"MAP@{min(k, MAP_DEPTH)}": precision, f"GAP@{k}": gap, "Hit@1": hit, "PERR": perr}


def _expected_gap(totals: Ints, found: Ints, positives: int) -> float:
    """GAP of groups of equal confidence in descending order, each in random order within.

    Of a group's t predictions h hit; before it stand N predictions with H hits. The j-th of the group hits with
    probability h/t, and then H + 1 + (j - 1)(h - 1)/(t - 1) are expected to have hit so far. With
    S = 1/(N+1) + ... + 1/(N+t) the expected sum of precisions is  h/t ((H + 1) S + (h - 1)/(t - 1) (t - (N + 1) S)).
    """
    filled = totals > 0
    t, h = totals[filled].astype(np.float64), found[filled].astype(np.float64)
    n, hits = np.cumsum(t) - t, np.cumsum(h) - h
    s = np.diff(_harmonic(np.concatenate([[0], np.cumsum(t)])))
    slope = (h - 1) / np.maximum(t - 1, 1)
    return float((h / t * ((hits + 1) * s + slope * (t - (n + 1) * s))).sum() / positives)


def _harmonic(n: Floats) -> Floats:
    """1 + 1/2 + ... + 1/n: by table up to 32, from there by its asymptotic series, true to 1e-15."""
    table = np.concatenate([[0], np.cumsum(1 / np.arange(1, 33))])
    x = np.maximum(n, 1)
    series = np.log(x) + _EULER_GAMMA + 1 / (2 * x) - 1 / (12 * x**2) + 1 / (120 * x**4) - 1 / (252 * x**6)
    return np.where(n <= 32, table[np.minimum(n, 32).astype(np.int64)], series)
