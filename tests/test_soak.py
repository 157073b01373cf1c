"""The short form of tests/soak.py."""

from __future__ import annotations

from pathlib import Path

from tests.soak import own_records, soak, write_records


def test_memory_and_open_files_stay_flat(tmp_path: Path) -> None:
    shard = write_records(tmp_path / "soak.tfrecord", own_records(), 60)
    result = soak(shard, tmp_path, "--batch-size", "64")
    assert result.records == 60_000
    assert result.flat, result
