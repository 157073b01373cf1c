"""Ids have keys of their own, and duplicates are rows less distinct keys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer.evaluation import duplicates as module
from scorer.evaluation.duplicates import count_duplicates, id_keys
from scorer.kernels.packed import PackedStrings
from tests.loops import loops  # noqa: F401

IDS = st.binary(min_size=1, max_size=100).map(lambda name: name.replace(b"\0", b"0"))


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
