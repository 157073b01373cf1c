"""The metrics against cases worked by hand and against a naive implementation of their definitions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scorer.evaluation.metrics import Metrics, exact_metrics, global_average_precision, read_metrics
from scorer.kernels import loops as kernels
from scorer.kernels.numpy_loops import find_hits
from scorer.kernels.packed import PackedStrings, metric_record
from tests import shards
from tests.loops import loops, using  # noqa: F401

Case = tuple[NDArray[np.int64], NDArray[np.float32], list[list[int]]]
K, LABELS = 12, 20


def csr(truth: Sequence[Sequence[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    splits = np.cumsum([0, *map(len, truth)], dtype=np.int64)
    return np.array([label for row in truth for label in row], np.int64), splits


def add(
    metrics: Metrics, labels: NDArray[np.int64], scores: NDArray[np.float32], truth: Sequence[Sequence[int]]
) -> None:
    packed = PackedStrings.of([b"".join(map(shards.varint, row)) for row in truth])
    records = kernels.active.metric_records(labels, scores, packed)
    metrics.add(np.frombuffer(records, metric_record(metrics.k)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Predictions of K of LABELS labels, and truths with repeated and unknown labels, some empty."""
    videos = draw(st.integers(1, 6))
    labels = np.array([draw(st.permutations(range(LABELS)))[:K] for _ in range(videos)], np.int64)
    scores = np.array(
        [
            sorted(draw(st.lists(st.floats(0, 1, width=32), min_size=K, max_size=K)), reverse=True)
            for _ in range(videos)
        ],
        np.float32,
    )
    known = st.one_of(st.integers(0, LABELS - 1), st.sampled_from([-5, LABELS + 7, 2**62]))
    return labels, scores, draw(st.lists(st.lists(known, max_size=8), min_size=videos, max_size=videos))


def naive(labels: NDArray[np.int64], scores: NDArray[np.float32], truth: list[list[int]]) -> dict[str, float]:
    """The definitions in scorer/evaluation/metrics.py, one loop each; equal confidences in every order there is."""
    rows = [(list(row), set(true)) for row, true in zip(labels.tolist(), truth, strict=True) if true]
    if not rows:
        return {}
    average, first, equal = [], [], []
    for predicted, true in rows:
        total = sum(len(true & set(predicted[: i + 1])) / (i + 1) for i in range(10) if predicted[i] in true)
        average.append(total / min(len(true), 10))
        first.append(float(predicted[0] in true))
        n = min(len(true), K)
        equal.append(len(true & set(predicted[:n])) / n)
    pairs = [
        (score, label in set(true))
        for row, line, true in zip(labels.tolist(), scores.tolist(), truth, strict=True)
        if true
        for label, score in zip(row, line, strict=True)
    ]
    gap = naive_gap(pairs) / sum(len(true) for _, true in rows)
    count = len(rows)
    return {"MAP@10": sum(average) / count, f"GAP@{K}": gap, "Hit@1": sum(first) / count, "PERR": sum(equal) / count}


def naive_gap(pairs: list[tuple[float, bool]]) -> float:
    """The sum of precisions at hits, each group of equal scores by its exact expectation over all orders."""
    total, before, hits_before = 0.0, 0, 0
    for _, group in itertools.groupby(sorted(pairs, key=lambda pair: -pair[0]), key=lambda pair: pair[0]):
        hit = [found for _, found in group]
        t, h = len(hit), sum(hit)
        for j in range(1, t + 1):  # the j-th is a hit with h/t, and of the j-1 before it (j-1)(h-1)/(t-1) are expected
            so_far = hits_before + 1 + ((j - 1) * (h - 1) / (t - 1) if t > 1 else 0)
            total += h / t * so_far / (before + j)
        before, hits_before = before + t, hits_before + h
    return total


@given(cases())
def test_exact_metrics_equal_the_naive_ones(case: Case) -> None:
    labels, scores, truth = case
    assert exact_metrics(labels, scores, *csr(truth)) == pytest.approx(naive(labels, scores, truth), abs=1e-12)


@given(cases(), st.integers(1, 6))
def test_streaming_equals_exact_except_for_gap_within_a_bin(case: Case, size: int) -> None:
    labels, scores, truth = case
    scores = np.float32(2) ** np.round(-20 * scores)  # one value per bin, so that GAP is exact too
    metrics = Metrics(K)
    for i in range(0, len(labels), size):
        add(metrics, labels[i : i + size], scores[i : i + size], truth[i : i + size])
    assert metrics.result() == pytest.approx(exact_metrics(labels, scores, *csr(truth)), abs=1e-12)
    assert metrics.videos == sum(bool(row) for row in truth)


@pytest.mark.parametrize("spread", ["uniform", "small", "near one"])
def test_streaming_gap_comes_close_on_any_spread_of_confidences(spread: str) -> None:
    random = np.random.default_rng(3)
    videos = 4000
    uniform = random.random((videos, 10))
    scores = {"uniform": uniform, "small": uniform**8, "near one": 1 - uniform**8 / 2}[spread].astype(np.float32)
    scores = -np.sort(-scores, axis=1)
    labels = np.argsort(random.random((videos, 30)), axis=1)[:, :10]
    truth = [random.integers(0, 30, random.integers(0, 5)).tolist() for _ in range(videos)]
    metrics = Metrics(10)
    add(metrics, labels, scores, truth)
    assert metrics.result()["GAP@10"] == pytest.approx(exact_metrics(labels, scores, *csr(truth))["GAP@10"], abs=1e-5)


def test_map_by_hand() -> None:
    """Hits at places 1 and 3 of 2 positives: (1/1 + 2/3) / 2. One hit at place 2 of 3 positives: (1/2) / 3."""
    labels = np.array([[4, 9, 7, 1, 2, 3, 5, 6, 8, 0], [4, 9, 7, 1, 2, 3, 5, 6, 8, 0]])
    scores = np.linspace(0.9, 0.1, 10, dtype=np.float32)[None].repeat(2, axis=0)
    result = exact_metrics(labels, scores, *csr([[7, 4], [9, 11, 12]]))
    assert result["MAP@10"] == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2) / 3) / 2)
    assert result["Hit@1"] == 0.5
    assert result["PERR"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_map_divides_by_ten_where_there_are_more_positives() -> None:
    labels, scores = np.arange(10)[None], np.linspace(1, 0, 10, dtype=np.float32)[None]
    assert exact_metrics(labels, scores, *csr([list(range(25))]))["MAP@10"] == 1.0


def test_gap_by_hand() -> None:
    """In one list: 0.9 hit, 0.8 miss, 0.7 hit, 0.6 miss, of 3 positives: (1/1 + 2/3) / 3."""
    hits = np.array([[True, True], [False, False]])
    scores = np.array([[0.9, 0.7], [0.8, 0.6]], np.float32)
    assert global_average_precision(hits, scores, 3) == pytest.approx((1 + 2 / 3) / 3)


def test_gap_of_equal_confidences_is_the_mean_over_their_orders() -> None:
    """One hit among three equal: first, second or third, so (1 + 1/2 + 1/3) / 3."""
    hits, scores = np.array([[False, True, False]]), np.full((1, 3), 0.5, np.float32)
    assert global_average_precision(hits, scores, 1) == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)


def test_gap_of_large_groups_is_still_exact() -> None:
    random = np.random.default_rng(0)
    scores = random.choice(np.array([0.1, 0.2, 0.3], np.float32), 3000).reshape(300, 10)
    hits = random.random((300, 10)) < 0.3
    expected = naive_gap(list(zip(scores.ravel().tolist(), hits.ravel().tolist(), strict=True))) / 1000
    assert global_average_precision(hits, scores, 1000) == pytest.approx(expected, abs=1e-12)


def test_truth_is_counted_once_and_unknown_labels_are_never_found() -> None:
    hits, positives = find_hits(np.array([[5, 6], [1, 2]]), *csr([[6, 6, 6, 999, 999, -3], []]))
    assert hits.tolist() == [[False, True], [False, False]]
    assert positives.tolist() == [3, 0]


def test_splits_may_start_anywhere() -> None:
    values, splits = np.array([7, 7, 5, 6]), np.array([2, 3, 4])
    hits, positives = find_hits(np.array([[5], [5]]), values, splits)
    assert (hits.tolist(), positives.tolist()) == ([[True], [False]], [1, 1])


def test_what_eval_util_does_otherwise() -> None:
    """Videos without labels are left out, and a hit of confidence 0 is a hit."""
    labels, scores = np.array([[3, 4], [5, 6]]), np.array([[0.5, 0], [0.9, 0.8]], np.float32)
    metrics = Metrics(2)
    add(metrics, labels, scores, [[3, 4], []])
    assert metrics.result() == {"MAP@2": 1.0, "GAP@2": 1.0, "Hit@1": 1.0, "PERR": 1.0}
    assert exact_metrics(labels, scores, *csr([[3, 4], []])) == metrics.result()


def test_without_labels_there_are_no_metrics() -> None:
    metrics = Metrics(10)
    add(metrics, np.zeros((2, 10), np.int64), np.zeros((2, 10), np.float32), [[], []])
    assert metrics.result() == {}
    assert exact_metrics(np.zeros((2, 10), np.int64), np.zeros((2, 10), np.float32), *csr([[], []])) == {}


def test_fewer_than_ten_predictions_name_what_was_measured() -> None:
    result = exact_metrics(np.array([[3, 4]]), np.array([[0.9, 0.8]], np.float32), *csr([[3, 4, 5]]))
    assert result == {"MAP@2": 1.0, "GAP@2": pytest.approx(2 / 3), "Hit@1": 1.0, "PERR": 1.0}


def test_the_metrics_of_a_file_are_those_of_the_stream(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scores = -np.sort(-random.random((50, 10), np.float32), axis=1)
    labels = np.argsort(random.random((50, 30)), axis=1)[:, :10]
    truth = PackedStrings.of(
        [b"".join(map(shards.varint, random.integers(0, 30, n).tolist())) for n in random.integers(0, 4, 50)]
    )
    records = kernels.active.metric_records(labels, scores, truth)
    expected = Metrics(10)
    expected.add(np.frombuffer(records, metric_record(10)))
    path = tmp_path / "hits"
    path.write_bytes(records)
    with path.open("rb") as file:
        assert read_metrics(file, 10).result() == expected.result() != {}


def test_an_empty_file_has_no_metrics(tmp_path: Path) -> None:
    (tmp_path / "hits").write_bytes(b"")
    with (tmp_path / "hits").open("rb") as file:
        assert read_metrics(file, 10).result() == {}


@given(st.integers(1, 24), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_records_count_the_same_in_whatever_pieces(k: int, videos: int, seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    records = np.empty(videos, metric_record(k))
    records["positives"] = random.integers(1, 2 * k + 2, videos)
    records["scores"] = random.choice([0, -0.0, 1e-45, 0.25, 0.5, 1 - 2**-24, 1, random.random()], (videos, k))
    records["hits"] = random.random((videos, k)) < 0.4
    whole, pieces = Metrics(k), Metrics(k)
    with using("numpy"):
        whole.add(records)
    for start in range(0, videos, size):
        pieces.add(records[start : start + size])
    assert pieces.result() == whole.result()


@pytest.mark.parametrize("score", [1.5, -0.1, np.inf, np.nan])
def test_records_of_no_confidences_are_refused(score: float) -> None:
    with pytest.raises(ValueError, match="no such metric records"):
        Metrics(1).add(np.array([(1, [score], [True])], metric_record(1)))


@pytest.mark.parametrize("positives", [0, -1])
def test_records_without_positives_are_refused(positives: int) -> None:
    with pytest.raises(ValueError, match="no such metric records"):
        Metrics(1).add(np.array([(positives, [0.5], [True])], metric_record(1)))
