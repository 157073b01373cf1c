"""The short form of tests/soak.py."""

from __future__ import annotations

from pathlib import Path

from tests.soak import own_records, soak


def test_memory_and_open_files_stay_flat(tmp_path: Path) -> None:
    result = soak(own_records(), 60, tmp_path, "--batch-size", "64")
    assert result.records == 60_000
    assert result.flat, result
