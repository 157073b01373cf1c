"""A job from shards to the committed file, with a model of plain NumPy."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer.errors import InputError, NothingScoredError, RecordError, ResumeError, ShardError, UsageError
from scorer.job.run import score
from scorer.job.spec import Job, Progress
from scorer.model.predictor import Features, Predictions
from scorer.outputs.file import FileSink
from scorer.outputs.sink import Commit
from scorer.system.signals import StopRequest
from tests import shards
from tests.scorer.fakes import INPUTS, FakePredictor, do, files_of, write_shards
from tests.scorer.threads import no_threads_left

pytestmark = pytest.mark.usefixtures("each_batch_on_its_own")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "out").mkdir()
    found = shards.sources(write_shards(tmp_path / "shards", [9, 14, 7]))
    return Job(found, str(tmp_path / "out" / "preds.csv"), commit_seconds=0.0)


def other(job: Job, name: str, **changes: Any) -> Job:
    """The same job with another output beside the first."""
    return replace(job, output=str(Path(job.output).with_name(name)), **changes)


def rows_of(job: Job) -> bytes:
    return Path(job.output).read_bytes()


def ids_of(job: Job) -> list[str]:
    with open(job.output, newline="") as file:
        return [row[0] for row in csv.reader(file)][1:]


def quarantine_of(job: Job) -> list[dict[str, Any]]:
    lines = Path(f"{job.output}.quarantine.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 30, 1000])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("coalesced", [1, 20, 2048])
def test_rows_do_not_depend_on_batches_and_slots(
    job: Job, batch_size: int, slots: int, coalesced: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorer.pipeline.predict.COALESCED_VIDEOS", coalesced)
    do(job)
    again = other(job, "again.csv")
    do(again, FakePredictor(batch_size, slots))
    assert rows_of(again) == rows_of(job)
    assert ids_of(job) == [f"{shard}-{row}" for shard, count in enumerate([9, 14, 7]) for row in range(count)]


def test_the_watcher_sees_every_batch(job: Job) -> None:
    seen: list[Progress] = []
    score(job, FakePredictor(), StopRequest(), seen.append)
    assert [progress.scored for progress in seen] == [8, 16, 24, 30]
    assert seen[-1].shards == 3
    assert seen[-1].bytes == sum(shard.stat.size for shard in job.shards)


def test_work_is_committed_no_more_often_than_asked(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[Commit] = []
    really = FileSink.commit

    def recorded(self: FileSink, commit: Commit) -> None:
        commits.append(commit)
        really(self, commit)

    monkeypatch.setattr(FileSink, "commit", recorded)
    do(replace(job, commit_seconds=1e9))
    assert [commit.scored for commit in commits] == [30]


def test_a_bad_payload_loses_one_record_and_a_bad_length_the_rest_of_its_shard(job: Job) -> None:
    places = shards.starts(job.shards[1].address)
    shards.damage_payload(job.shards[0].address, 2)
    shards.damage_length(job.shards[1].address, 10)
    report = do(replace(job, on_error="skip"))
    record = report.record
    assert (record.read, record.scored, record.quarantined) == (8 + 10 + 7 + 2, 25, 2)
    assert record.bytes_lost == places[-1] - places[10]
    one, rest = quarantine_of(job)
    assert (one["path"], one["record"], one["bytes_lost"]) == (job.shards[0].address, 2, 0)
    assert (rest["record"], rest["offset"], rest["bytes_lost"]) == (10, places[10], places[-1] - places[10])
    assert [shard.records for shard in record.shards] == [9, 11, 7]
    assert ids_of(job)[-7:] == [f"2-{row}" for row in range(7)], "decoding continues at the next shard"


@pytest.mark.parametrize("old", [True, False])
def test_a_job_of_bad_records_alone_leaves_everything_as_it_was(job: Job, old: bool) -> None:
    if old:
        do(job)
    before = files_of(Path(job.output))
    for shard in job.shards:
        Path(shard.address).write_bytes(b"not a TFRecord at all")
    says = r"none of the 3 records could be scored; the first, .*a\.tfrecord: record 0 at byte 0: not a TFRecord"
    with pytest.raises(NothingScoredError, match=says):
        do(replace(job, on_error="skip"))
    assert files_of(Path(job.output)) == before


def test_one_good_record_is_worth_an_output(job: Job) -> None:
    for shard in job.shards[1:]:
        Path(shard.address).write_bytes(b"not a TFRecord at all")
    for row in range(8):
        shards.damage_payload(job.shards[0].address, row)
    assert do(replace(job, on_error="skip")).record.scored == 1


def test_what_was_quarantined_survives_a_resume(job: Job) -> None:
    for row in (1, 5, 8):
        shards.damage_payload(job.shards[1].address, row)
    skipping = replace(job, on_error="skip")
    whole = other(skipping, "whole.csv")
    do(whole)
    with pytest.raises(RecordError, match="3 records are quarantined by now, and 2 may be \\(16 videos are kept"):
        do(replace(skipping, max_errors=2))
    with pytest.raises(UsageError, match="3 records are quarantined already, and 2 may be"):
        do(replace(skipping, max_errors=2, resume_policy="resume"))
    do(replace(skipping, resume_policy="resume"))
    assert Path(f"{job.output}.quarantine.jsonl").read_bytes() == Path(f"{whole.output}.quarantine.jsonl").read_bytes()
    assert rows_of(job) == rows_of(whole)


def test_without_skip_the_first_bad_record_ends_the_job(job: Job) -> None:
    shards.damage_payload(job.shards[2].address, 6)
    with pytest.raises(ShardError, match=r"c\.tfrecord: record 6 at byte \d+: .* \(24 videos are kept\); download"):
        do(job)
    shards.damage_payload(job.shards[2].address, 6)  # fixed
    do(replace(job, resume_policy="resume"))
    assert len(ids_of(job)) == 30


HOSTILE = ["a,b", 'say "x"', "=1+1", "'=1+1", "+1", "@x", "-x", " =x", "\xa0=x", "\ufeff=x", "＝x", "é", "x" * 300]
FORGING = ['a"\nVICTIM,0 1.000000', "\ttab", "ends\r", "\x1b[2J", "\x0b=x", "\x85", "\x7f"]


def test_hostile_ids_stay_in_their_cell(job: Job) -> None:
    features = {name: np.ones(width, np.float32) for name, width in INPUTS.items()}
    shards.write_shard(job.shards[0].address, [shards.example(name, None, features) for name in HOSTILE])
    do(job)
    guarded = ["'" + name if name[0] in "=+@' \xa0\ufeff＝" else name for name in HOSTILE]
    assert ids_of(job)[: len(HOSTILE)] == guarded
    assert len(rows_of(job).splitlines()) == 1 + len(HOSTILE) + 14 + 7, "a line a row, for every tool"


def test_ids_that_would_forge_a_line_or_reach_the_terminal_are_bad_records(job: Job) -> None:
    features = {name: np.ones(width, np.float32) for name, width in INPUTS.items()}
    shards.write_shard(job.shards[0].address, [shards.example(name, None, features) for name in FORGING])
    record = do(replace(job, on_error="skip")).record
    assert (record.scored, record.quarantined) == (14 + 7, len(FORGING))
    assert all("control character" in bad["reason"] for bad in quarantine_of(job))


def test_repeated_ids_are_counted(job: Job) -> None:
    Path(job.shards[1].address).write_bytes(Path(job.shards[0].address).read_bytes())
    assert do(job).record.duplicates == 9


def test_only_labelled_shards_have_metrics(job: Job, tmp_path: Path) -> None:
    assert set(do(job).record.metrics) == {"MAP@10", "GAP@10", "Hit@1", "PERR"}
    bare = shards.sources(write_shards(tmp_path / "bare", [5], labelled=False))
    assert do(other(replace(job, shards=bare), "bare.csv")).record.metrics == {}


def test_the_model_decides_how_many_labels_there_are(job: Job) -> None:
    with pytest.raises(UsageError, match=r"k is 31, outside 1\.\.30"):
        do(replace(job, top_k=31))


def test_a_shard_that_vanishes_is_an_input_error_and_the_job_resumes_once_it_is_back(job: Job) -> None:
    lost = Path(job.shards[2].address)
    data = lost.read_bytes()

    class Thief(FakePredictor):
        def run(self, features: Features, k: int = 10) -> Predictions:
            lost.unlink(missing_ok=True)
            return super().run(features, k)

    with pytest.raises((InputError, ResumeError), match=r"c\.tfrecord"):
        do(job, Thief(batch_size=1))
    lost.write_bytes(data)
    do(replace(job, resume_policy="resume"))
    assert len(ids_of(job)) == 30


def test_a_bug_is_no_reason_to_lose_what_was_committed(job: Job) -> None:
    class Bug(FakePredictor):
        def run(self, features: Features, k: int = 10) -> Predictions:
            if len(features["mean_rgb"]) < 8:
                raise ZeroDivisionError
            return super().run(features, k)

    with pytest.raises(ZeroDivisionError):
        do(job, Bug())
    assert do(replace(job, resume_policy="resume")).resumed == 24


def test_no_file_or_thread_stays_open(job: Job) -> None:
    with no_threads_left():
        do(job)
        shards.damage_payload(job.shards[2].address, 6)
        with pytest.raises(ShardError):
            do(other(job, "other.csv"))
    assert not [name for name in files_of(Path(job.output)) if name.endswith(".lock")]


def test_labels_that_are_none_are_said_once_and_the_videos_scored(job: Job) -> None:
    """The other videos' labels count for the metrics."""
    features = {name: np.ones(width, np.float32) for name, width in INPUTS.items()}
    without = shards.example("odd", None, {**features, "labels": np.ones(2, np.float32)})
    shards.write_shard(job.shards[0].address, [without, shards.example("even", [3], features), without])
    told: list[str] = []
    shown = replace(job, shards=shards.sources(shard.address for shard in job.shards))
    report = score(shown, FakePredictor(), StopRequest(), lambda progress: None, told.append)
    fault = "feature 'labels' is a float_list, not a int64_list: such labels are not used"
    assert told == [f"{job.shards[0].address}: record 0 at byte 0: {fault}"]
    assert (report.record.scored, report.record.quarantined) == (24, 0)
    assert ids_of(job)[:3] == ["odd", "even", "odd"]
    assert report.record.metrics
