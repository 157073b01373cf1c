"""Both sets of loops give the same, and state the same limits."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scorer.kernels import limits
from scorer.kernels import loops as module
from scorer.kernels.loops import Loops
from scorer.kernels.packed import PackedStrings
from tests import shards
from tests.loops import HERE, SETS, needs_both

IDS = st.binary(min_size=1, max_size=100).map(lambda name: name.replace(b"\0", b"0"))


def varints(truth: list[list[int]]) -> PackedStrings:
    return PackedStrings.of([b"".join(map(shards.varint, row)) for row in truth])


def test_both_state_the_same_limits() -> None:
    """Asked of the compiled module itself: where they differ it is not used, and nothing else would compare them."""
    native = pytest.importorskip("scorer.kernels.native", reason="not compiled here", exc_type=ImportError)
    stated = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert stated == native.LIMITS


@needs_both
@given(st.lists(st.lists(st.integers(-3, 12) | st.integers(-(2**63), 2**63 - 1), max_size=40), max_size=5))
def test_both_give_the_same_metric_records(truth: list[list[int]]) -> None:
    random = np.random.default_rng(len(truth))
    labels = np.array([random.permutation(12)[:7] for _ in truth], np.int64).reshape(-1, 7)
    scores = random.random((len(truth), 7), np.float32)
    compiled, plain = (SETS[name].metric_records(labels, scores, varints(truth)) for name in HERE)
    assert compiled == plain


@pytest.mark.parametrize("loops", SETS.values(), ids=HERE)
@given(st.lists(st.lists(st.integers(-3, 12) | st.integers(-(2**63), 2**63 - 1), max_size=9), max_size=5))
def test_labels_that_no_model_has_are_counted(loops: Loops, truth: list[list[int]]) -> None:
    assert loops.count_unknown(varints(truth), 10) == sum(not 0 <= label < 10 for row in truth for label in row)


@needs_both
@given(st.lists(IDS, max_size=30))
def test_both_give_the_same_keys(ids: list[bytes]) -> None:
    compiled, plain = (SETS[name].id_keys(PackedStrings.of(ids)) for name in HERE)
    assert compiled == plain


def first_bad(labels: NDArray[np.int64], scores: NDArray[np.float32], label_count: int) -> int:
    """The definition, in the plainest words."""
    for row, (names, values) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True)):
        falling = all(a >= b for a, b in pairwise([1.0, *values, 0.0]))  # NaN is neither above nor below
        if not falling or len({*names}) < len(names) or not all(0 <= name < label_count for name in names):
            return row
    return -1


WRONG_SCORES = [float("nan"), float("inf"), -float("inf"), -1e-45, 1.0000001, 2.0]


@pytest.mark.parametrize("loops", SETS.values(), ids=HERE)
@given(st.data())
def test_the_first_bad_row_is_found(loops: Loops, data: st.DataObject) -> None:
    rows, k = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 12))
    scores = -np.sort(-np.random.default_rng(rows).choice(np.array([0, -0.0, 0.25, 1], np.float32), (rows, k)))
    labels = np.random.default_rng(k).permuted(np.tile(np.arange(20), (rows, 1)), axis=1)[:, :k]
    if rows and k and data.draw(st.booleans()):
        at = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, k - 1))
        if data.draw(st.booleans()):
            labels[at] = labels[at[0], 0]  # once more, unless it is this one
        elif data.draw(st.booleans()):
            scores[at] = data.draw(st.sampled_from(WRONG_SCORES) | st.floats(0, 1, width=32))
        else:
            labels[at] = data.draw(st.sampled_from([-1, 20, -(2**63), 2**63 - 1, 2**32]))
    assert loops.check_predictions(labels, scores, 20) == first_bad(labels, scores, 20)


@pytest.mark.parametrize("k", [2, 64, 65, 300])
@pytest.mark.parametrize("loops", SETS.values(), ids=HERE)
def test_a_label_that_stands_twice_in_a_row_is_found(loops: Loops, k: int) -> None:
    labels = np.stack([np.arange(k), np.arange(k)[::-1], np.arange(k)])
    scores = np.ones((3, k), np.float32)
    assert loops.check_predictions(labels, scores, k) == -1
    labels[1, 0] = labels[1, -1]
    assert loops.check_predictions(labels, scores, k) == 1


@pytest.mark.parametrize("loops", SETS.values(), ids=HERE)
def test_predictions_of_other_shapes_are_refused(loops: Loops) -> None:
    labels, scores = np.arange(6).reshape(2, 3), np.zeros((2, 3), np.float32)
    wrongs: list[Any] = [scores[:1], scores[:, :2], scores[0], scores.astype(np.float64)]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=r"labels int64 \(2, 3\) and scores"):
            loops.check_predictions(labels, wrong, 9)
    assert loops.check_predictions(labels.T, scores.T, 9) == -1


def test_why_there_are_no_compiled_loops_is_known() -> None:
    assert (module.active.NAME == "compiled") == (module.missing == "")


@given(
    st.binary(max_size=300) | st.integers(0, 3).map(lambda n: bytes(range(256)) * (256 * n)), st.integers(0, 2**32 - 1)
)
def test_crc32c_is_the_packages(data: bytes, before: int) -> None:
    for loops in SETS.values():
        assert loops.crc32c(data, before) == crc32c.crc32c(data, before)
        assert loops.crc32c(memoryview(data)) == crc32c.crc32c(data)


def test_crc32c_of_bytes_that_are_taken_in_stripes() -> None:
    data, start = np.random.default_rng(0).bytes(50_000), 1
    for size in (*range(6136, 6152), *range(12_280, 12_296), 18_432, 49_999):
        for loops in SETS.values():
            part = data[start : start + size]
            assert loops.crc32c(memoryview(data)[start : start + size], size) == crc32c.crc32c(part, size)


@needs_both
def test_a_job_with_compiled_loops_reads_no_metadata_of_packages() -> None:
    """As `import crc32c` does, and whoever asks for the command that installs an extra: it takes 10 ms."""
    code = "import sys, scorer.cli.score as s; s.main(sys.argv[1:]); sys.exit('importlib.metadata' in sys.modules)"
    samples = Path(__file__).parents[3] / "samples" / "samples0000.tfrecord"
    subprocess.run(
        [sys.executable, "-c", code, str(samples), "-o", os.devnull, "--quiet", "--model", "bundled"], check=True
    )


@needs_both
@pytest.mark.parametrize(
    "change", ["del native.crc32c", "native.LIMITS['MAX_INPUTS'] += 1", "native.LIMITS['NEW'] = 1"]
)
def test_loops_compiled_from_other_sources_are_refused(change: str) -> None:
    """As an editable install has them whose sources were pulled and not installed again."""
    code = f"from scorer.kernels import native; {change}; from scorer.kernels import loops; print(loops.missing)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "compiled from other sources; install the package again\n"
