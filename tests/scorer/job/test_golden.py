"""What stands on disk stays what it was, byte for byte: other versions resume it and other programs read it.

The files of tests/golden/job were written before the writing code was split into sinks.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scorer.errors import DeviceError
from scorer.job.record import CompletionRecord
from scorer.job.spec import Job
from scorer.model.predictor import Features, Predictions
from tests import shards
from tests.scorer.fakes import FailingModel, do, write_shards
from tests.scorer.journals import as_journal

GOLDEN = Path(__file__).parents[2] / "golden" / "job"
STOPPED_AFTER = 2
CHANGED = 1_600_000_000_123_456_789


class CoarsePredictor(FailingModel):
    """Scores of few digits, which every processor computes alike. Fails after some batches."""

    def __init__(self, batches: int = 1000) -> None:
        super().__init__(batches)

    def run(self, features: Features, k: int = 10) -> Predictions:
        scores, labels = super().run(features, k)
        return Predictions((np.round(scores * 4096) / 4096).astype(np.float32), labels)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr("scorer.pipeline.predict.COALESCED_VIDEOS", 1)
    monkeypatch.chdir(tmp_path)
    paths = write_shards(Path("shards"), [9, 14, 7])
    shards.damage_payload(paths[1], 3)
    for path in paths:
        os.utime(path, ns=(CHANGED, CHANGED))
    Path("out").mkdir()
    return Job(shards.sources(paths), "out/preds.csv", on_error="skip", commit_seconds=0.0)


def golden(name: str) -> bytes:
    """The file as it is in this folder; of the journal all but the checksums, in which the folder's name is."""
    return (GOLDEN / name).read_bytes().replace(b"FOLDER", os.getcwd().encode())


def test_journal_rows_quarantine_and_record_are_those_of_old(job: Job) -> None:
    with pytest.raises(DeviceError):
        do(job, CoarsePredictor(STOPPED_AFTER))
    assert Path("out/.preds.csv.journal").read_bytes() == as_journal(golden("journal").splitlines())
    do(replace(job, resume_policy="resume"), CoarsePredictor())
    assert Path("out/preds.csv").read_bytes() == golden("preds.csv")
    assert Path("out/preds.csv.quarantine.jsonl").read_bytes() == golden("quarantine.jsonl")
    assert Path("out/preds.csv.done.json").read_bytes() == golden("done.json")


def test_a_record_survives_its_json() -> None:
    value = json.loads((GOLDEN / "done.json").read_bytes())
    record = CompletionRecord.from_json(value)
    assert json.dumps(record.to_json(), indent=2).encode() + b"\n" == (GOLDEN / "done.json").read_bytes()
    assert (record.read, record.scored, record.quarantined) == (30, 29, 1)


@pytest.mark.parametrize("name", ["output", "options", "scored", "bytes_lost", "shards", "read", "format"])
@pytest.mark.parametrize("value", [None, -1, True, "x", [], {}, [{}], {"x": "y"}])
def test_a_record_of_another_form_is_refused(name: str, value: object) -> None:
    record = json.loads((GOLDEN / "done.json").read_bytes())
    with pytest.raises(ValueError, match="not a completion record"):
        CompletionRecord.from_json({**record, name: value})
    with pytest.raises(ValueError, match="not a completion record"):
        CompletionRecord.from_json({key: value for key, value in record.items() if key != name})
