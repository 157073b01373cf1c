"""What an output refuses, so that what stands under its final name is always whole and its own."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scorer.errors import OutputError, ResumeError
from scorer.job.spec import Job
from scorer.model.predictor import Features, Predictions
from scorer.outputs import file as file_sink
from scorer.outputs.paths import output_paths
from tests import shards
from tests.scorer.fakes import FakePredictor, do, write_shards

OLD = b"what stood there before\n"


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Two shards, a record of the second damaged, over an older output with its record."""
    paths = write_shards(tmp_path / "shards", [9, 7])
    shards.damage_payload(paths[1], 3)
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "preds.csv"
    output.write_bytes(OLD)
    output.with_name("preds.csv.done.json").write_bytes(OLD)
    return Job(shards.sources(paths), str(output), on_error="skip", commit_seconds=0.0)


class Cleaner(FakePredictor):
    """Removes a file while the job runs, as a cleaner of temporary files may."""

    def __init__(self, path: Path) -> None:
        super().__init__(slots=1)
        self.target = path

    def run(self, features: Features, k: int = 10) -> Predictions:
        self.target.unlink(missing_ok=True)
        return super().run(features, k)


@pytest.mark.parametrize("kind", ["partial", "quarantine"])
def test_work_that_was_removed_meanwhile_is_missed(job: Job, kind: str) -> None:
    output = Path(job.output)
    removed = output.with_name(f".preds.csv.{kind}")
    for policy in ("refuse", "resume"):
        with pytest.raises(OutputError, match=rf"{removed.name}, which was removed"):
            do(replace(job, resume_policy=policy), Cleaner(removed))
        assert output.read_bytes() == OLD, "an older output is left alone"
        assert output.with_name("preds.csv.done.json").read_bytes() == OLD
    do(replace(job, resume_policy="restart"))
    assert output.read_bytes() != OLD


@pytest.mark.parametrize("kind", ["lock", "partial", "journal"])
def test_a_link_in_place_of_a_work_file_is_not_followed(job: Job, tmp_path: Path, kind: str) -> None:
    target = tmp_path / "precious"
    target.write_bytes(OLD)
    link = Path(job.output).with_name(f".preds.csv.{kind}")
    link.symlink_to(target)
    if kind == "partial":  # a job that begins removes it
        do(job)
    else:
        with pytest.raises((OutputError, ResumeError), match="is a symbolic link"):
            do(job)
        if kind == "journal":
            do(replace(job, resume_policy="restart"))
    assert target.read_bytes() == OLD


@pytest.mark.parametrize("output", ["", ".", "absent/..", "absent/"])
def test_an_output_that_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="no name" if not output else "is a folder"):
        output_paths(output)


def test_a_name_too_long_for_what_is_added_to_it_is_refused_at_once(job: Job, tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") - len("..done.json.12345678.part")
    name = "é" * (longest // 2)  # two bytes each
    with pytest.raises(OutputError, match=f"too long; choose one of at most {longest} bytes"):
        output_paths(str(tmp_path / (name + "xx")))
    do(replace(job, output=str(tmp_path / name)))
    assert (tmp_path / f"{name}.done.json").exists()


def test_the_record_is_safe_before_the_journal_goes(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("replace_bytes", "sync_folder", "_remove"):
        really = getattr(file_sink, name)

        def noted(*arguments: Any, name: str = name, really: Any = really) -> None:
            calls.append(f"{name} {arguments[0].name}")
            really(*arguments)

        monkeypatch.setattr(file_sink, name, noted)
    do(job)
    last = calls[calls.index("replace_bytes preds.csv.done.json") :]
    assert last[1:3] == ["sync_folder out", "_remove .preds.csv.journal"]
