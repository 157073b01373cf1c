"""A second kind of output and a second form of rows are one new file each: a job over them needs no other code."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from scorer.errors import ResumeError, UsageError
from scorer.job.part import merge, plan, run_part
from scorer.job.result import PartResult
from scorer.job.spec import Job
from scorer.outputs.sink import shard_id
from tests import shards
from tests.scorer.fakes import LABELS, FailingModel, FakePredictor, do, write_shards
from tests.scorer.outputs import toy_format, toy_sink  # noqa: F401

pytestmark = pytest.mark.usefixtures("each_batch_on_its_own")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    paths = write_shards(tmp_path / "shards", [9, 14, 7])
    shards.damage_payload(paths[1], 3)
    return Job(shards.sources(paths), str(tmp_path / "preds.csv"), on_error="skip", commit_seconds=0.0)


def test_rows_of_another_form(job: Job) -> None:
    do(job)
    best = [line.replace(b",", b" ").split()[:2] for line in Path(job.output).read_bytes().splitlines()[1:]]
    record = do(replace(job, row_format="toy-best")).record
    assert [line.split(b"\t") for line in Path(job.output).read_bytes().splitlines()] == best
    assert record.to_json()["options"]["format"] == "toy-best"
    assert record.output.bytes == os.path.getsize(job.output)


def test_rows_of_another_form_are_resumed_and_not_mixed(job: Job, tmp_path: Path) -> None:
    toy = replace(job, row_format="toy-best")
    do(replace(toy, output=str(tmp_path / "whole.csv")))
    with pytest.raises(Exception, match="fell off"):
        do(toy, FailingModel(2))
    with pytest.raises(ResumeError, match="format was toy-best and is now not known"):
        do(replace(job, resume_policy="resume"))
    assert do(replace(toy, resume_policy="resume")).resumed > 0
    assert Path(toy.output).read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_format_that_there_is_none_of(job: Job) -> None:
    with pytest.raises(UsageError, match="there is no format 'xlsx'; choose one of jsonl, labels, pairs"):
        do(replace(job, row_format="xlsx"))


def rows_of(table: toy_sink.Table) -> list[tuple[bytes, list[int]]]:
    return [pair for group in table.groups for pair in zip(group.ids, group.labels.tolist(), strict=True)]


def test_an_output_of_another_kind(job: Job) -> None:
    csv = do(job).record
    rows = [line.split(b",") for line in Path(job.output).read_bytes().splitlines()[1:]]
    toy = replace(job, output="toy://whole")
    record = do(toy).record
    table = toy_sink.TABLES["toy://whole"]
    assert rows_of(table) == [(name, [int(label) for label in pairs.split()[::2]]) for name, pairs in rows]
    assert len(table.groups) > 1, "it has row groups"
    assert table.record == record.to_json()
    assert replace(record, output=csv.output) == csv, "counts, duplicates and metrics are those of a file"


def test_an_output_of_another_kind_is_resumed(job: Job) -> None:
    toy = replace(job, output="toy://resumed")
    with pytest.raises(Exception, match="fell off"):
        do(toy, FailingModel(2))
    assert do(replace(toy, resume_policy="resume")).resumed == 16
    do(replace(toy, output="toy://at once"))
    assert rows_of(toy_sink.TABLES["toy://resumed"]) == rows_of(toy_sink.TABLES["toy://at once"])
    resumed, at_once = (json.dumps(toy_sink.TABLES[f"toy://{name}"].record) for name in ("resumed", "at once"))
    assert resumed.replace("resumed", "at once") == at_once


def test_parts_merge_into_an_output_of_another_kind(job: Job) -> None:
    parts = [run_part(job, part, FakePredictor()) for part in plan(job.shards, 2)]
    merge(parts, [*map(shard_id, job.shards)], "toy://merged")
    do(replace(job, output="toy://alone"))
    assert rows_of(toy_sink.TABLES["toy://merged"]) == rows_of(toy_sink.TABLES["toy://alone"])


def test_parts_merge_into_packed_rows_with_names(job: Job, tmp_path: Path) -> None:
    names = [f"label {label}" for label in range(LABELS)]
    named = replace(job, row_format="jsonl.gz", threshold=0.4, names=names)
    parts = [run_part(named, part, FakePredictor()) for part in plan(job.shards, 2)]
    parts = [PartResult.from_bytes(part.to_bytes()) for part in parts]
    ids = [*map(shard_id, job.shards)]
    with pytest.raises(UsageError, match="the parts were run with other names of labels"):
        merge(parts, ids, str(tmp_path / "merged.jsonl.gz"))
    merge(parts, ids, str(tmp_path / "merged.jsonl.gz"), names=names)
    do(replace(named, output=str(tmp_path / "alone.jsonl.gz")))
    assert (tmp_path / "merged.jsonl.gz").read_bytes() == (tmp_path / "alone.jsonl.gz").read_bytes()


def test_another_threshold_or_other_names_do_not_resume(job: Job) -> None:
    named = replace(job, row_format="jsonl", threshold=0.4, names=["a"] * LABELS)
    with pytest.raises(Exception, match="fell off"):
        do(named, FailingModel(2))
    with pytest.raises(ResumeError, match=r"threshold was 0\.4 and is now 0\.5"):
        do(replace(named, threshold=0.5, resume_policy="resume"))
    with pytest.raises(ResumeError, match="names_sha256 was"):
        do(replace(named, names=["b"] * LABELS, resume_policy="resume"))
    with pytest.raises(UsageError, match="1 names for the 30 labels"):
        do(replace(named, names=["b"]))
    with pytest.raises(UsageError, match=r"the threshold 2 is no confidence"):
        do(replace(named, threshold=2))
