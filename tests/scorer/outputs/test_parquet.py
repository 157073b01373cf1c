"""Rows as Parquet: what readers find, and that bytes do not depend on how rows came."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer.errors import ModelError, UsageError
from scorer.kernels.packed import PackedStrings
from scorer.outputs import parquet as module
from scorer.outputs.formats import format_of, make_format
from scorer.outputs.row_format import RowOptions

arrow: Any = pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
pytest.importorskip("pyarrow.parquet")
Arrays = tuple[list[bytes], np.ndarray, np.ndarray]


def predictions(videos: int, k: int = 10) -> Arrays:
    random = np.random.default_rng(0)
    scores = -np.sort(-random.random((videos, k), np.float32), axis=1)
    ids = [f"é{number}".encode() for number in range(videos)]
    return ids, random.integers(0, 50, (videos, k)), scores


def packed(arrays: Arrays, batches: list[int], options: RowOptions) -> bytes:
    """The file, of rows that came in batches of these sizes, over and over."""
    ids, labels, scores = arrays
    made = make_format("parquet", options)
    staged, start, turn = io.BytesIO(), 0, 0
    while start < len(ids):
        part = slice(start, start + batches[turn % len(batches)])
        staged.write(made.rows(PackedStrings.of(ids[part]), labels[part], scores[part]))
        start, turn = part.stop, turn + 1
    staged.seek(0)
    target = io.BytesIO()
    assert made.pack
    made.pack(staged, target.write)
    return target.getvalue()


def test_pandas_and_duckdb_find_what_was_predicted(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is absent (extra test)")
    pandas = pytest.importorskip("pandas", reason="pandas is absent (extra test)")
    ids, labels, scores = predictions(300, 4)
    names = [f"name {label}" for label in range(50)]
    path = tmp_path / "preds.parquet"
    path.write_bytes(packed((ids, labels, scores), [70], RowOptions(0.5, names)))
    frame = pandas.read_parquet(path)
    rows = duckdb.sql(f"select id, labels, names, scores from '{path}'").fetchall()
    assert [*frame.columns] == ["id", "labels", "names", "scores"]
    assert len(rows) == len(frame) == 300
    for row, (name, found, called, confidences) in enumerate(rows):
        count = int((scores[row] >= 0.5).sum())
        assert name == frame["id"][row] == ids[row].decode()
        assert found == frame["labels"][row].tolist() == labels[row, :count].tolist()
        assert called == [*frame["names"][row]] == [names[label] for label in found]
        assert np.array_equal(np.array(confidences, np.float32), scores[row, :count]), "exactly, as float32"


@pytest.mark.parametrize("options", [RowOptions(), RowOptions(0.3, [f"name {label}" for label in range(50)])])
def test_bytes_do_not_depend_on_batches(options: RowOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_LABELS", 20_000)  # 2,000 rows a group
    arrays = predictions(9_500)
    whole = packed(arrays, [9_500], options)
    for batches in ([256], [1, 7, 4_096], [2_000], [5_000, 13]):
        assert packed(arrays, batches, options) == whole
    groups = arrow.parquet.ParquetFile(io.BytesIO(whole)).metadata
    assert [groups.row_group(index).num_rows for index in range(groups.num_row_groups)] == [2_000] * 4 + [1_500]


def test_no_rows_are_a_file_too() -> None:
    table = arrow.parquet.read_table(io.BytesIO(packed(predictions(0), [1], RowOptions())))
    assert (len(table), table.column_names) == (0, ["id", "labels", "scores"])


def test_types() -> None:
    kinds = arrow.parquet.read_table(io.BytesIO(packed(predictions(3), [3], RowOptions()))).schema
    assert [kinds.field("id").type, kinds.field("labels").type.value_type, kinds.field("scores").type.value_type] == [
        arrow.string(),
        arrow.int32(),
        arrow.float32(),
    ]


def test_a_score_that_is_none_is_refused_at_once() -> None:
    with pytest.raises(ModelError, match="are not in"):
        make_format("parquet").rows(PackedStrings.of([b"a"]), np.zeros((1, 1), np.int64), np.full((1, 1), np.nan, "f4"))


def test_its_name_and_what_it_cannot_be() -> None:
    assert format_of("preds.parquet") == "parquet"
    with pytest.raises(UsageError, match=r"parquet is compressed within; leave \.gz out"):
        make_format(format_of("preds.parquet.gz"))


def test_without_pyarrow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"Parquet needs pyarrow, which is not installed; pip install '.*\[parquet\]'"):
        make_format("parquet")
