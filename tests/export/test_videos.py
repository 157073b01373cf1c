"""The videos that are checked and calibrated on: shards of every kind, by the scorer's own reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import cli
from export.videos import read_videos
from scorer.errors import UsageError
from tests.export.small import CONFIGS, save_run, write_videos
from tests.shards import sources

INPUTS = dict(CONFIGS["lstm"].inputs)


@pytest.fixture
def parquet(tmp_path: Path) -> str:
    """The videos of a.tfrecord, in columns with names of their own."""
    arrow: Any = pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
    writer = pytest.importorskip("pyarrow.parquet", reason="pyarrow is absent (extra parquet)")
    plain = read_videos(sources([write_videos(tmp_path / "a.tfrecord", CONFIGS["lstm"], 60)]), INPUTS)
    labels = np.split(plain.label_values, plain.label_splits[1:-1])
    columns = {f"my_{name}": [*values] for name, values in plain.features.items()}
    table = arrow.table({"id": [f"v{row}" for row in range(60)], "tags": labels, **columns})
    writer.write_table(table, tmp_path / "a.parquet")
    return str(tmp_path / "a.parquet")


NAMED = {"labels": "tags", **{name: f"my_{name}" for name in INPUTS}}


def test_columns_with_other_names(parquet: str, tmp_path: Path) -> None:
    plain = read_videos(sources([str(tmp_path / "a.tfrecord")]), INPUTS)
    read = read_videos(sources([parquet]), INPUTS, columns=NAMED)
    assert all(np.array_equal(read.features[name], plain.features[name]) for name in INPUTS)
    assert np.array_equal(read.label_values, plain.label_values)
    assert np.array_equal(read.label_splits, plain.label_splits)
    with pytest.raises(UsageError, match="there is no feature 'rgb' to name a column for"):
        read_videos(sources([parquet]), INPUTS, columns={"rgb": "x"})


def test_the_command_takes_them_and_empty_shards(
    parquet: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_run(tmp_path / "runs", "lstm")
    (tmp_path / "empty.parquet").touch()
    arguments = ["--model", "lstm", "--runs", str(tmp_path / "runs"), "-o", str(tmp_path / "models"), "--no-speed"]
    shards = ["--check", parquet, str(tmp_path / "empty.parquet"), "--calibrate", parquet]
    columns = ",".join(f"{name}={column}" for name, column in NAMED.items())
    assert cli.main([*arguments, *shards, "--columns", columns, "--allow-empty"]) == 0
    assert "60 videos of 2 shards" in capsys.readouterr().out
    assert cli.main([*arguments, *shards, "--columns", columns]) == 4
    assert capsys.readouterr().err.endswith("or use --allow-empty, or leave the shard out\n")
    assert cli.main([*arguments, "--check", parquet]) == 3
    assert capsys.readouterr().err.endswith("; rename a column, or say which it is with --columns\n")
