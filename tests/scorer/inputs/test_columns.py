"""Parquet and Arrow files as shards: every promise of a record format, over lists of every kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer.errors import InputError, ShardError, UsageError
from scorer.inputs import columns
from scorer.inputs.batching import batches
from scorer.inputs.position import BEGINNING
from scorer.inputs.readers import RecordReaders, decoded_blocks
from scorer.inputs.records import Schema
from scorer.inputs.source import Source
from scorer.job.spec import Job
from tests import onnx_models, shards
from tests.scorer.fakes import INPUTS, do
from tests.soak import write_columns

pa: Any = pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
pytest.importorskip("pyarrow.parquet", reason="pyarrow is absent (extra parquet)")

SCHEMA = Schema(INPUTS)
ROWS = 23


def table(rows: int = ROWS, kind: Any = None, **changes: Any) -> Any:
    """Columns of random videos, every third without labels; features are lists of `kind`."""
    random = np.random.default_rng(0)
    columns: dict[str, Any] = {
        "title": [f"other {row}" for row in range(rows)],
        "labels": [[row % 30, 129] if row % 3 else None for row in range(rows)],
    }
    for name, width in INPUTS.items():
        values = random.normal(size=(rows, width)).astype(np.float16).astype(np.float32).tolist()
        columns[name] = pa.array(values, kind(width) if kind else pa.list_(pa.float32()))
    columns["id"] = [f"é{row}" for row in range(rows)]
    return pa.table({**columns, **changes})


def parquet(path: Path, data: Any) -> None:
    pa.parquet.write_table(data, path, row_group_size=7)


def arrow(path: Path, data: Any) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, data.schema) as writer:
        writer.write_table(data, max_chunksize=7)


WRITERS: dict[str, Callable[[Path, Any], None]] = {"parquet": parquet, "arrow": arrow}


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Source]:
    def written(data: Any, name: str = "videos.shard") -> Source:
        WRITERS[request.param](tmp_path / name, data)
        return shards.sources([str(tmp_path / name)])[0]

    return written


KINDS: dict[str, Callable[[int], Any]] = {
    "list of float32": lambda width: pa.list_(pa.float32()),
    "list of float64": lambda width: pa.list_(pa.float64()),
    "list of float16": lambda width: pa.list_(pa.float16()),
    "large list": lambda width: pa.large_list(pa.float32()),
    "fixed list of float32": lambda width: pa.list_(pa.float32(), width),
    "fixed list of float64": lambda width: pa.list_(pa.float64(), width),
    "fixed list of float16": lambda width: pa.list_(pa.float16(), width),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_read(write: Callable[..., Source], kind: str) -> None:
    data = table(kind=KINDS[kind])
    (batch,) = batches([write(data)], SCHEMA, 50)
    splits = batch.label_splits.tolist()
    assert batch.ids == [f"é{row}".encode() for row in range(ROWS)]
    assert [batch.label_values[i:j].tolist() for i, j in pairwise(splits)] == [
        labels or [] for labels in data["labels"].to_pylist()
    ]
    for name in INPUTS:
        assert np.array_equal(batch.features[name], np.array(data[name].to_pylist(), np.float32))
    assert batch.finished == [(0, ROWS)]


def test_what_a_source_without_labels_gives(write: Callable[..., Source]) -> None:
    (batch,) = batches([write(table().drop_columns(["labels"]))], SCHEMA, 50)
    assert not batch.labelled


def test_reading_resumes_after_every_batch(write: Callable[..., Source]) -> None:
    found = [write(table(), "a"), write(table(40), "b")]
    whole = [batch.ids for batch in batches(found, SCHEMA, 4)]
    for number, batch in enumerate(batches(found, SCHEMA, 4), 1):
        assert batch.end.offset or not batch.end.record, "a position within a shard is known by its offset"
        rest = batches(found, SCHEMA, 4, start=batch.end)
        assert [some.ids for some in rest] == whole[number:]


def test_blocks_say_where_each_row_is(write: Callable[..., Source]) -> None:
    source = write(table())
    found = [
        block.position(row) for block in decoded_blocks([(0, source)], SCHEMA, BEGINNING) for row in range(len(block))
    ]
    assert [position.record for position in found] == list(range(ROWS))
    assert [position.offset for position in found] == sorted(position.offset for position in found)
    assert all(0 <= position.offset < source.stat.size for position in found)


def long(rows: int, row: int, value: Any) -> list[Any]:
    values: list[Any] = [[0.5] * 4 for _ in range(rows)]
    values[row] = value
    return values


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "short": ({"mean_rgb": long(ROWS, 9, [1.0])}, "column 'mean_rgb' holds 1 values, the model wants 4"),
    "null list": ({"mean_rgb": long(ROWS, 9, None)}, "column 'mean_rgb' is null"),
    "null value": ({"mean_rgb": long(ROWS, 9, [1.0, None, 1.0, 1.0])}, "column 'mean_rgb' holds nan at index 1"),
    "infinite": ({"mean_rgb": long(ROWS, 9, [1.0, 1.0, 1.0, 1e300])}, "column 'mean_rgb' holds inf at index 3"),
    "no id": ({"id": ["x"] * 9 + [None] + ["x"] * 13}, "column 'id' is null"),
    "empty id": ({"id": ["x"] * 9 + [""] + ["x"] * 13}, "feature 'id' is empty"),
    "not UTF-8": ({"id": [b"x"] * 9 + [b"\xff"] + [b"x"] * 13}, "feature 'id' is not UTF-8"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_row_is_quarantined_with_its_place(write: Callable[..., Source], fault: str) -> None:
    changes, reason = BAD[fault]
    source = write(table(**changes))
    (batch,) = batches([source], SCHEMA, 50, on_error="skip")
    (bad,) = batch.quarantined
    assert (bad.path, bad.record, len(batch)) == (source.address, 9, ROWS - 1)
    assert reason in bad.reason
    good = [row for row in range(ROWS) if row != 9]
    expected = np.array([[0.5] * 4] * ROWS if "mean_rgb" in changes else table()["mean_rgb"].to_pylist(), np.float32)
    assert np.array_equal(batch.features["mean_rgb"], expected[good])


@pytest.mark.parametrize("name", ["one.parquet", "many.parquet", "many.arrow"])
def test_what_is_in_memory_is_a_few_pieces_of_the_file(tmp_path: Path, name: str) -> None:
    rows, groups = (8000, 1) if name.startswith("one") else (400, 20)
    (source,) = shards.sources([str(write_columns(tmp_path / name, groups, rows))])
    before, held, read = pa.total_allocated_bytes(), [], 0
    for block in decoded_blocks([(0, source)], Schema(onnx_models.INPUTS), BEGINNING):
        held.append(pa.total_allocated_bytes() - before)
        read += len(block)
    assert read == 8000
    assert max(held) < 16 << 20 < source.stat.size // 2


def test_record_batches_that_do_not_fit_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Arrow files, which have each in memory; of a Parquet file's row groups only pages are."""
    monkeypatch.setattr(columns, "MAX_BATCH_BYTES", 100)
    arrow(tmp_path / "a", table())
    with pytest.raises(
        ShardError, match=r"/a: .*its record batches have [\d,]+ bytes, more than 100: write smaller ones"
    ):
        list(batches(shards.sources([str(tmp_path / "a")]), SCHEMA, 50))
    parquet(tmp_path / "b", table())
    (batch,) = batches(shards.sources([str(tmp_path / "b")]), SCHEMA, 50)
    assert len(batch) == ROWS


def test_labels_that_are_none_are_said_and_not_used(write: Callable[..., Source]) -> None:
    (batch,) = batches([write(table(labels=["a"] * ROWS))], SCHEMA, 50)
    assert (len(batch), batch.labelled, len(batch.label_faults)) == (ROWS, False, ROWS)


def test_a_column_that_lacks_is_named(write: Callable[..., Source]) -> None:
    source = write(table().rename_columns(["title", "labels", "rgb", "mean_audio", "id"]))
    with pytest.raises(InputError, match=r"there is no column 'mean_rgb'; it has 'title', 'labels', 'rgb'.*; rename"):
        RecordReaders(SCHEMA).open(source)


def test_columns_of_other_names(write: Callable[..., Source], tmp_path: Path) -> None:
    plain = Job([write(table(), "plain")], str(tmp_path / "plain.csv"))
    renamed = write(table().rename_columns(["title", "truth", "rgb", "mean_audio", "name"]), "renamed")
    columns = {"mean_rgb": "rgb", "id": "name", "labels": "truth"}
    other = Job([renamed], str(tmp_path / "other.csv"), columns=columns)
    assert do(other).record.metrics == do(plain).record.metrics
    assert Path(other.output).read_bytes() == Path(plain.output).read_bytes()
    assert do(other).record.options.columns == "id=name,labels=truth,mean_rgb=rgb"
    with pytest.raises(UsageError, match="there is no feature 'rgb' to name a column for; choose from mean_rgb, "):
        do(replace(other, columns={"rgb": "x"}))


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_cut_file_is_damaged_in_one_line(write: Callable[..., Source], keep: float) -> None:
    path = Path(write(table()).address)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ShardError, match="cannot be read"):
        [*batches(shards.sources([str(path)]), SCHEMA, 4)]


def test_offsets_of_an_arrow_file_lead_nowhere_else(tmp_path: Path) -> None:
    """pyarrow takes them as they stand, and would read wherever they lead."""
    arrow(tmp_path / "x", table())
    content = (tmp_path / "x").read_bytes()
    ends = np.arange(8, dtype="<i4") * INPUTS["mean_rgb"]
    assert ends.tobytes() in content
    forged = ends.copy()
    forged[1:-1] = 1 << 30
    (tmp_path / "x").write_bytes(content.replace(ends.tobytes(), forged.tobytes()))
    with pytest.raises(ShardError, match="cannot be read"):
        [*batches(shards.sources([str(tmp_path / "x")]), SCHEMA, 4)]


def test_lists_that_take_no_room_in_the_file_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """A number that is repeated is stored once: 64 million of them in a few kilobytes."""
    rows, many = 16, 1 << 20
    ends = pa.array(np.arange(rows + 1, dtype=np.int32) * many)
    zeros = pa.ListArray.from_arrays(ends, pa.array(np.zeros(rows * many, np.float32)))
    data = pa.table({**table(rows).to_pydict(), "mean_rgb": zeros})
    pa.parquet.write_table(data, tmp_path / "x", compression="zstd")
    assert (tmp_path / "x").stat().st_size < 1 << 16
    with open(tmp_path / "x", "rb", buffering=0) as file:
        pieces = columns._ParquetTable(file).pieces(["id", *INPUTS], 0, 1000)
        assert [len(piece) for piece, _ in pieces] == [4, 4, 4, 4]
    (batch,) = batches(shards.sources([str(tmp_path / "x")]), SCHEMA, rows, on_error="skip")
    assert "holds 1048576 values, the model wants 4" in batch.quarantined[rows - 1].reason


def test_a_change_is_noticed_at_the_end(write: Callable[..., Source]) -> None:
    source = write(table())
    with closing(RecordReaders(SCHEMA).open(source)) as reader:
        Path(source.address).write_bytes(b"x")
        with pytest.raises(InputError, match="changed while it was read"):
            reader.check_unchanged()


def test_an_empty_table(write: Callable[..., Source]) -> None:
    assert sum(len(batch) for batch in batches([write(table(0))], SCHEMA, 4)) == 0


def test_a_job_gives_the_rows_of_the_same_videos_as_records(write: Callable[..., Source], tmp_path: Path) -> None:
    data = table()
    rows = data.to_pylist()
    records = [shards.example(row["id"], row["labels"], {name: row[name] for name in INPUTS}) for row in rows]
    plain = shards.sources([shards.write_shard(tmp_path / "plain.tfrecord", records)])
    do(Job(plain, str(tmp_path / "plain.csv")))
    report = do(Job([write(data), plain[0]], str(tmp_path / "both.csv")))
    expected = (tmp_path / "plain.csv").read_bytes().splitlines()
    assert (tmp_path / "both.csv").read_bytes().splitlines() == [*expected, *expected[1:]]
    assert (report.record.scored, report.record.shards[0].records) == (2 * ROWS, ROWS)


def test_without_pyarrow_the_extra_is_named(write: Callable[..., Source], monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(table())
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"needs pyarrow, which is not installed; pip install '.*\[parquet\]'"):
        RecordReaders(SCHEMA).open(source)
