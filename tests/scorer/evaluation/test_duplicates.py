"""Ids have keys of their own, and duplicates are rows less distinct keys."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

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


def test_duplicates_are_rows_less_distinct_ids(tmp_path: Path) -> None:
    assert duplicates([], tmp_path) == 0
    assert duplicates([b"a", b"b"], tmp_path) == 0
    assert duplicates([b"a", b"b", b"a", b"a"], tmp_path) == 2


def count(keys: list[int] | NDArray[np.uint64]) -> int:
    with tempfile.NamedTemporaryFile() as file:
        file.write(np.array(keys, "<u8").tobytes())
        file.flush()
        return count_duplicates(file, len(keys))  # type: ignore[arg-type]  # a wrapper of one


@given(
    st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 20) | st.integers(2**64 - 20, 2**64 - 1), max_size=200),
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(1, 12),
)
def test_duplicates_are_rows_less_distinct_keys(keys: list[int], times: int, at_once: int, bits: int) -> None:
    """Few keys or many, near one another or not, in memory or dealt out many times over."""
    keys = keys * times + keys[: len(keys) // 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SORTED_AT_ONCE", at_once)
        patch.setattr(module, "_MOST_BITS", bits)
        assert count(keys) == len(keys) - len(set(keys))


@pytest.mark.parametrize("rows", [10_000, 40_000, 160_000])
def test_a_key_is_read_three_times_however_many_there_are(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SORTED_AT_ONCE", 1000)
    read = 0

    def fromfile(file: BinaryIO, kind: str, most: int) -> NDArray[np.uint64]:
        nonlocal read
        assert most <= 1000
        read += most
        return plain(file, kind, most)

    plain = np.fromfile
    monkeypatch.setattr(np, "fromfile", fromfile)
    keys = np.random.default_rng(rows).integers(0, 2**64, rows, np.uint64)
    keys[: rows // 10] = keys[-(rows // 10) :]
    assert count(keys) == rows // 10
    assert read <= 3 * rows


def test_one_id_in_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SORTED_AT_ONCE", 100)
    assert count([7] * 5000) == 4999


def test_a_disk_that_writes_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SORTED_AT_ONCE", 100)
    plain = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: plain(file, data[:5], offset))
    assert count([*range(0, 2**64, 2**54), 0, 2**54]) == 2
