"""True labels that the model does not know, as those of another release, are counted, however a job came to its end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scorer.errors import DeviceError
from scorer.job.part import merge, plan, run_part
from scorer.job.result import PartResult
from scorer.job.spec import Job
from scorer.outputs.sink import shard_id
from tests import shards
from tests.scorer.fakes import INPUTS, LABELS, FailingModel, FakePredictor, do, files_of

OTHERS = [[1, LABELS], [LABELS - 1], [], [4715, 1 << 40, 3], [0]]
"""True labels of the videos of a shard, three of which are none of the model's."""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    features = {name: np.zeros(width, np.float32) for name, width in INPUTS.items()}
    paths = []
    for name in "abc":
        records = [shards.example(f"{name}{row}", labels, features) for row, labels in enumerate(OTHERS * 2)]
        paths.append(shards.write_shard(tmp_path / f"{name}.tfrecord", records))
    (tmp_path / "out").mkdir()
    return Job(shards.sources(paths), str(tmp_path / "out" / "preds.csv"), commit_seconds=0.0)


def test_they_are_counted(job: Job) -> None:
    record = do(job).record
    assert record.unknown_labels == 3 * 2 * 3
    assert json.loads(Path(f"{job.output}.done.json").read_text())["unknown_labels"] == 18


def test_a_resumed_job_counts_them_once(job: Job, tmp_path: Path) -> None:
    with pytest.raises(DeviceError):
        do(job, FailingModel(2))
    assert do(replace(job, resume_policy="resume"), FakePredictor(batch_size=3)).resumed == 16
    (tmp_path / "whole").mkdir()
    whole = replace(job, output=str(tmp_path / "whole" / "preds.csv"))
    do(whole)
    assert files_of(Path(job.output)) == files_of(Path(whole.output))


def test_parts_count_theirs(job: Job, tmp_path: Path) -> None:
    parts = [run_part(job, part, FakePredictor()) for part in plan(job.shards, 2)]
    (tmp_path / "merged").mkdir()
    output = tmp_path / "merged" / "preds.csv"
    merge([PartResult.from_bytes(part.to_bytes()) for part in parts], [*map(shard_id, job.shards)], str(output))
    do(job)
    assert files_of(output) == files_of(Path(job.output))
