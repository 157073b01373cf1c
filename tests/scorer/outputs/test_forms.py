"""The forms of rows beside the default, and how they are packed: each equals a plain reference."""

from __future__ import annotations

import gzip
import io
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer.errors import ModelError, UsageError
from scorer.kernels.numpy_rows import quote_id
from scorer.kernels.packed import PackedStrings
from scorer.outputs.compression import COMPRESSIONS, packing_with
from scorer.outputs.csv_rows import LabelsOnly, Pairs
from scorer.outputs.formats import check_name, format_of, make_format
from scorer.outputs.json_lines import JsonLines
from scorer.outputs.row_format import RowFormat, RowOptions
from tests.scorer.threads import allow_threads

NAMES = [f'name "{label}" \\ é\n' for label in range(40)]
IDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=9)
THRESHOLDS = st.sampled_from([0.0, 0.25, 0.5, 0.7, 1.0])

Table = tuple[list[str], list[list[int]], list[list[float]]]


@st.composite
def tables(draw: st.DrawFn) -> Table:
    """Ids, labels and descending scores, float32, of some videos with k labels each."""
    ids = draw(st.lists(IDS, max_size=6))
    k = draw(st.integers(1, 5))
    scores = [sorted(draw(st.lists(st.floats(0, 1, width=32), min_size=k, max_size=k)), reverse=True) for _ in ids]
    return ids, [draw(st.lists(st.integers(0, 39), min_size=k, max_size=k)) for _ in ids], scores


def rows(made: RowFormat, table: Table) -> bytes:
    ids, labels, scores = table
    shape = len(ids), len(labels[0]) if labels else 1
    arrays = np.array(labels, np.int64).reshape(shape), np.array(scores, np.float32).reshape(shape)
    return made.rows(PackedStrings.of([name.encode() for name in ids]), *arrays)


def kept(table: Table, threshold: float) -> list[tuple[str, list[int], list[float]]]:
    found = []
    for name, labels, scores in zip(*table, strict=True):
        count = sum(score >= float(np.float32(threshold)) for score in scores)
        found.append((name, labels[:count], scores[:count]))
    return found


@given(tables(), THRESHOLDS)
def test_pairs_above_a_threshold(table: Table, threshold: float) -> None:
    expected = [
        quote_id(name.encode())
        + b","
        + " ".join(f"{label} {abs(score):f}" for label, score in zip(labels, scores, strict=True)).encode()
        + b"\n"
        for name, labels, scores in kept(table, threshold)
    ]
    assert rows(Pairs(RowOptions(threshold)), table) == b"".join(expected)


@given(tables(), THRESHOLDS)
def test_labels_alone(table: Table, threshold: float) -> None:
    expected = [
        quote_id(name.encode()) + b"," + " ".join(map(str, labels)).encode() + b"\n"
        for name, labels, _ in kept(table, threshold)
    ]
    assert rows(LabelsOnly(RowOptions(threshold)), table) == b"".join(expected)


@given(tables(), THRESHOLDS, st.booleans())
def test_json_lines(table: Table, threshold: float, named: bool) -> None:
    lines = rows(JsonLines(RowOptions(threshold, NAMES if named else None)), table).decode().splitlines()
    for line, (name, labels, scores) in zip(lines, kept(table, threshold), strict=True):
        names = {"names": [NAMES[label] for label in labels]} if named else {}
        expected: dict[str, Any] = {"id": name, "labels": labels, **names, "scores": [*map(round, scores, [6] * 9)]}
        assert [*json.loads(line).items()] == [*expected.items()]


def test_labels_of_any_number_are_written_in_little_memory() -> None:
    """A part file may say what no model does."""
    table = ["a"], [[2**31 - 1, 2**20, 7]], [[1.0, 0.5, 0.25]]
    assert b'"labels":[2147483647,1048576,7]' in rows(JsonLines(), table)
    assert rows(LabelsOnly(), table) == b"a,2147483647 1048576 7\n"


def test_the_form_of_json_lines() -> None:
    table: Table = (["a_1"], [[7, 12]], [[1.0, 0.25]])
    assert rows(JsonLines(), table) == b'{"id":"a_1","labels":[7,12],"scores":[1.000000,0.250000]}\n'


@pytest.mark.parametrize("name", ["pairs", "labels", "jsonl"])
def test_rows_do_not_depend_on_how_many_come_at_once(name: str) -> None:
    random = np.random.default_rng(0)
    count, k = 70_000, 3
    scores = -np.sort(-random.random((count, k), np.float32), axis=1)
    labels = random.integers(0, 3862, (count, k))
    ids = PackedStrings.of([b"%x" % number for number in random.integers(0, 2**40, count)])
    made = make_format(name, RowOptions(0.2))
    one_by_one = [
        made.rows(PackedStrings.of([video]), labels[row : row + 1], scores[row : row + 1])
        for row, video in enumerate(ids.split()[:300])
    ]
    assert made.rows(ids, labels, scores).startswith(b"".join(one_by_one))


@pytest.mark.parametrize("made", [Pairs(RowOptions(0.5)), LabelsOnly(), JsonLines()], ids=["pairs", "labels", "jsonl"])
@pytest.mark.parametrize("score", [math.nan, -0.1, 1.1])
def test_scores_outside_of_0_to_1_are_refused(made: RowFormat, score: float) -> None:
    with pytest.raises(ModelError, match="the scores of video b'b' are not in"):
        rows(made, (["a", "b"], [[1], [2]], [[0.5], [score]]))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_members_are_the_same_however_rows_came_and_readers_read_them(compression: str) -> None:
    if compression == "zst":
        pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
    data = np.random.default_rng(0).integers(97, 100, 3_500_000, np.uint8).tobytes()
    pack = packing_with(COMPRESSIONS[compression]())
    assert _unpacked(compression, _packed(pack, data)) == data
    assert _packed(pack, data) == _packed(pack, data)
    assert _unpacked(compression, _packed(pack, b"")) == b""


@pytest.mark.parametrize("most", [0, 2])
def test_members_are_the_same_where_the_system_starts_fewer_threads(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """A job of which every row is written must not end there."""
    monkeypatch.setattr("scorer.outputs.compression.usable_cores", lambda: 4)
    data = np.random.default_rng(0).integers(97, 100, 5 << 20, np.uint8).tobytes()
    pack = packing_with(zlib.compress)
    expected = _packed(pack, data)
    allow_threads(monkeypatch, most)
    assert _packed(pack, data) == expected


def _packed(pack: Callable[..., None], data: bytes) -> bytes:
    target = io.BytesIO()
    pack(io.BytesIO(data), target.write)
    return target.getvalue()


def _unpacked(compression: str, data: bytes) -> bytes:
    if compression == "gz":
        assert data[4:8] == bytes(4), "a time would make two runs differ"
        return gzip.decompress(data)
    import pyarrow

    return bytes(pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read())


NAMED = {
    "preds.csv": "pairs",
    "preds": "pairs",
    "-": "pairs",
    "/dev/fd/63": "pairs",
    "a.b/preds.CSV.GZ": "pairs.gz",
    "preds.jsonl": "jsonl",
    "preds.ndjson.zst": "jsonl.zst",
    "preds.gz": "pairs.gz",
    ".hidden": "pairs",
}


@pytest.mark.parametrize("output", NAMED)
def test_a_name_says_its_format(output: str) -> None:
    assert format_of(output) == NAMED[output]


def test_a_format_that_was_asked_for() -> None:
    assert format_of("preds.csv.gz", "labels") == "labels.gz"
    assert format_of("-", "jsonl") == "jsonl"
    assert format_of("preds.txt", "jsonl") == "jsonl"
    with pytest.raises(UsageError, match=r"preds\.csv is to be jsonl, and its name says pairs; name it otherwise"):
        format_of("preds.csv", "jsonl")


@pytest.mark.parametrize("output", ["preds.xlsx", "preds.tar.gz", "preds.csv.bz2"])
def test_an_unknown_extension_is_refused_with_the_list(output: str) -> None:
    with pytest.raises(UsageError, match=rf"{output}: there is no format of \.\w+; name it \.csv, \.jsonl.* \.gz or"):
        format_of(output)


def test_formats_that_cannot_be() -> None:
    with pytest.raises(UsageError, match=r"there is no format 'jsonl\.bz2'; choose one of jsonl, labels, pairs"):
        make_format("jsonl.bz2")
    with pytest.raises(UsageError, match="rows of CSV hold no names of labels; choose jsonl"):
        make_format("labels", RowOptions(names=NAMES))
    with pytest.raises(UsageError, match="has 2002 bytes; shorten it"):
        make_format("jsonl", RowOptions(names=["x" * 2000]))


def test_zst_without_pyarrow_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"zst needs pyarrow, which is not installed; pip install '.*\[parquet\]"):
        make_format("jsonl.zst")


def test_nothing_of_a_folder_counts() -> None:
    assert format_of(str(Path("runs.v2") / "preds")) == "pairs"


def test_a_name_may_not_say_another_format_than_the_rows_have() -> None:
    for output, row_format in (("-", "jsonl"), ("preds", "jsonl"), ("preds.csv.gz", "labels.gz")):
        check_name(output, row_format)
    for output, row_format in (("preds.csv", "parquet"), ("preds.jsonl", "jsonl.gz"), ("preds.csv.gz", "pairs")):
        with pytest.raises(UsageError, match="name it otherwise"):
            check_name(output, row_format)
