"""Duplicates and metrics, counted from notes on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer.evaluation import duplicates as module
from scorer.evaluation.duplicates import count_duplicates, id_keys, measured, observe
from scorer.evaluation.metrics import Metrics, find_hits, note
from scorer.kernels.packed import PackedStrings
from tests import shards
from tests.loops import HERE, loops, using  # noqa: F401

IDS = st.binary(min_size=1, max_size=100).map(lambda name: name.replace(b"\0", b"0"))


def varints(truth: list[list[int]]) -> PackedStrings:
    return PackedStrings.of([b"".join(map(shards.varint, row)) for row in truth])


def duplicates(ids: list[bytes], folder: Path) -> int:
    path = folder / "ids"
    path.write_bytes(id_keys(PackedStrings.of(ids)))
    with path.open("rb") as file:
        return count_duplicates(file, len(ids))


@given(st.lists(IDS, max_size=30))
def test_equal_ids_have_equal_keys_and_others_have_others(ids: list[bytes]) -> None:
    keys = np.frombuffer(id_keys(PackedStrings.of(ids)), np.uint64)
    assert len(set(keys.tolist())) == len(set(ids))
    assert keys.tobytes() == b"".join(id_keys(PackedStrings.of([name])) for name in ids), (
        "a key depends on its neighbours"
    )


def test_keys_of_similar_ids_differ() -> None:
    ids = [b"%011d" % number for number in range(200_000)] + [b"%d" % number for number in range(200_000)]
    assert len(np.unique(np.frombuffer(id_keys(PackedStrings.of(ids)), np.uint64))) == len(ids)


@pytest.mark.parametrize("pass_rows", [10, 1 << 19])
def test_duplicates_are_rows_less_distinct_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pass_rows: int) -> None:
    monkeypatch.setattr(module, "_PASS_ROWS", pass_rows)
    assert duplicates([], tmp_path) == 0
    assert duplicates([b"a", b"b"], tmp_path) == 0
    assert duplicates([b"a", b"b", b"a", b"a"], tmp_path) == 2
    many = [b"%d" % (number % 70) for number in range(100)]
    assert duplicates(many, tmp_path) == 30


def test_the_metrics_are_those_of_the_stream(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    scores = -np.sort(-random.random((50, 10), np.float32), axis=1)
    labels = np.argsort(random.random((50, 30)), axis=1)[:, :10]
    truth = [random.integers(0, 30, count).tolist() for count in random.integers(0, 4, 50)]
    splits = np.cumsum([0, *map(len, truth)])
    expected = Metrics(10)
    hits, positives = find_hits(labels, np.array([label for row in truth for label in row]), splits)
    known = positives > 0
    expected.add(hits[known], positives[known], scores[known])
    path = tmp_path / "hits"
    path.write_bytes(
        observe(labels[:20], scores[:20], varints(truth[:20])) + observe(labels[20:], scores[20:], varints(truth[20:]))
    )
    with path.open("rb") as file:
        assert measured(file, 10).result() == expected.result()


def test_without_labels_there_are_no_metrics(tmp_path: Path) -> None:
    (tmp_path / "hits").write_bytes(b"")
    with (tmp_path / "hits").open("rb") as file:
        assert measured(file, 10).result() == {}


@given(st.integers(1, 24), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_notes_count_the_same_in_whatever_pieces(k: int, videos: int, seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    notes = np.empty(videos, note(k))
    notes["positives"] = random.integers(1, 2 * k + 2, videos)
    notes["scores"] = random.choice([0, -0.0, 1e-45, 0.25, 0.5, 1 - 2**-24, 1, random.random()], (videos, k))
    notes["hits"] = random.random((videos, k)) < 0.4
    whole, pieces = Metrics(k), Metrics(k)
    whole.add(notes["hits"], notes["positives"].astype(np.int64), notes["scores"])
    for start in range(0, videos, size):
        pieces.add_notes(notes[start : start + size])
    assert pieces.result() == whole.result()


@pytest.mark.parametrize("score", [1.5, np.nan])
def test_notes_of_no_confidences_are_refused(score: float) -> None:
    with pytest.raises((ValueError, IndexError)):
        Metrics(1).add_notes(np.array([(1, [score], [True])], note(1)))


@pytest.mark.skipif("compiled" not in HERE, reason="the package was installed without a C compiler")
@given(st.lists(st.lists(st.integers(-3, 12) | st.integers(-(2**63), 2**63 - 1), max_size=40), max_size=5))
def test_both_loops_observe_the_same(truth: list[list[int]]) -> None:
    random = np.random.default_rng(len(truth))
    labels = np.array([random.permutation(12)[:7] for _ in truth], np.int64).reshape(-1, 7)
    scores = random.random((len(truth), 7), np.float32)
    found = []
    for kind in HERE:
        with using(kind):
            found.append(observe(labels, scores, varints(truth)))
    assert found[0] == found[1]


@pytest.mark.skipif("compiled" not in HERE, reason="the package was installed without a C compiler")
@given(st.lists(IDS, max_size=30))
def test_both_loops_give_the_same_keys(ids: list[bytes]) -> None:
    found = []
    for kind in HERE:
        with using(kind):
            found.append(id_keys(PackedStrings.of(ids)))
    assert found[0] == found[1]
