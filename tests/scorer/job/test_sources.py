"""A job over sources: how often it looks at each, and that one of another kind needs no other code."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scorer.inputs.discover import find_shards
from scorer.inputs.source import LocalFile, LocalReader
from scorer.job.spec import Job
from tests.loops import needs_both, shard_by_shard
from tests.scorer.fakes import FakePredictor, do_as_found, write_shards
from tests.scorer.inputs import toy_source

STATS = 3
"""Looks at a local shard: when it is found, when it is opened, and at its end."""


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    (tmp_path / "out").mkdir()
    return write_shards(tmp_path / "shards", [9, 14, 7])


def counted(
    monkeypatch: pytest.MonkeyPatch, paths: list[str], calls: tuple[str, ...] = ("stat", "fstat", "lstat")
) -> Counter[str]:
    """How often each path, or a descriptor of it, is stat'ed from now on."""
    names, seen = {os.stat(path).st_ino: path for path in paths}, Counter[str]()

    def counting(name: str) -> None:
        real = getattr(os, name)

        def look(*arguments: Any, **options: Any) -> os.stat_result:
            status: os.stat_result = real(*arguments, **options)
            if status.st_ino in names:
                seen[names[status.st_ino]] += 1
            return status

        monkeypatch.setattr(os, name, look)

    for name in calls:
        counting(name)
    return seen


@pytest.mark.parametrize("name", ["the file", "its folder", "a pattern"])
def test_a_job_stats_each_local_shard_so_often(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = str(tmp_path / "shards")
    given = {"the file": paths, "its folder": [folder], "a pattern": [f"{folder}/*.tfrecord"]}[name]
    seen = counted(monkeypatch, paths)
    output = str(tmp_path / "out" / "preds.csv")
    with shard_by_shard():
        do_as_found(Job(find_shards(given, output), output))
    assert seen == dict.fromkeys(paths, STATS)


@needs_both
def test_the_compiled_loop_looks_at_each_local_shard_by_itself(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counted(monkeypatch, paths)
    do_as_found(Job(find_shards(paths), str(tmp_path / "out" / "preds.csv")))
    assert seen == dict.fromkeys(paths, 1)


def test_a_shard_read_in_ranges_is_looked_at_once_more_for_each_time_it_is_opened(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorer.pipeline.ranges.WORTH_RANGES", 0)
    opened, real = Counter[str](), LocalFile.open

    def counting(source: LocalFile) -> LocalReader:
        opened[source.address] += 1
        return real(source)

    monkeypatch.setattr(LocalFile, "open", counting)
    seen = counted(monkeypatch, paths, ("fstat",))
    output = str(tmp_path / "out" / "preds.csv")
    with shard_by_shard():
        do_as_found(Job(find_shards(paths), output), FakePredictor(batch_size=2, slots=3))
    assert max(opened.values()) > 1
    assert seen == opened


def test_a_toy_source_is_scored_as_files_are(paths: list[str], tmp_path: Path) -> None:
    for path in paths:
        toy_source.CONTENT[f"shards/{Path(path).name}"] = 1, Path(path).read_bytes()
    files = Job(find_shards(paths), str(tmp_path / "out" / "files.csv"))
    toys = replace(files, shards=find_shards(["toy://shards"]), output=str(tmp_path / "out" / "toys.csv"))
    record = do_as_found(toys).record
    do_as_found(files)
    assert Path(toys.output).read_bytes() == Path(files.output).read_bytes()
    assert [shard.canonical for shard in record.shards] == [f"toy://shards/{name}.tfrecord" for name in "abc"]
    assert [shard.records for shard in record.shards] == [9, 14, 7]
