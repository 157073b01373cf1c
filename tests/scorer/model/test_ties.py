"""Equal scores, in whatever order they were found: the lower label first, and none that a lower one should replace."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scorer.model.predictor import Predictions
from scorer.model.ties import best, undecided


@given(
    st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(0, 11),
    st.randoms(use_true_random=False),
)
def test_the_lower_label_comes_first_or_the_row_is_undecided(
    rows: list[list[int]], k: int, spare: int, random: np.random.Generator
) -> None:
    every = np.array(rows, np.float32)
    wanted = np.argsort(-every, axis=1, kind="stable")[:, :k]
    found = np.array([sorted(range(12), key=lambda label: (-row[label], random.random())) for row in every])
    found = found[:, : k + spare].astype(np.int64)
    given = Predictions(np.take_along_axis(every, found, axis=1), found)
    scores, labels = best(given, k)
    open_rows = undecided(given, k) if given.scores.shape[1] < 12 else np.array([], np.int64)
    decided = np.setdiff1d(np.arange(len(rows)), open_rows)
    assert (labels[decided] == wanted[decided]).all()
    assert (scores == np.take_along_axis(every, wanted, axis=1)).all()


def test_the_arrays_given_are_left_alone() -> None:
    given = Predictions(np.full((2, 4), 0.5, np.float32), np.array([[3, 2, 1, 0]] * 2))
    assert best(given, 2).labels.tolist() == [[0, 1]] * 2
    assert given.labels.tolist() == [[3, 2, 1, 0]] * 2
    assert undecided(given, 2).tolist() == [0, 1]
