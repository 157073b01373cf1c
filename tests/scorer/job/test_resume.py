"""A job that stopped is resumed to the bytes of one that did not, or refuses and names the difference."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from scorer.errors import DeviceError, InputError, ResumeError, ShardError
from scorer.job.spec import Job, Stopped
from scorer.model.predictor import Features, Predictions
from scorer.outputs.open import begun_options
from scorer.outputs.sink import ResumePolicy
from scorer.system.signals import StopRequest
from tests import shards
from tests.scorer.fakes import FACTS, FailingModel, FakePredictor, do, files_of, write_shards
from tests.scorer.journals import add_line, as_journal, entries

NO_JOB = {"job": {"format": 2, "options": {}, "shards": []}}
COUNTS = [9, 14, 7]  # batches of 8 end within each shard


pytestmark = pytest.mark.usefixtures("each_batch_on_its_own")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "out").mkdir()
    found = shards.sources(write_shards(tmp_path / "shards", COUNTS))
    return Job(found, str(tmp_path / "out" / "preds.csv"), commit_seconds=0.0)


@pytest.fixture
def expected(job: Job, tmp_path: Path) -> dict[str, bytes]:
    return whole(job, tmp_path / "whole")


def whole(job: Job, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    output = folder / "preds.csv"
    do(replace(job, output=str(output), resume_policy="refuse"))
    return files_of(output)


def broken_off(job: Job, batches: int) -> Job:
    """Commit `batches` batches of 8 videos and fail; returns the job that resumes."""
    with pytest.raises(DeviceError, match="fell off"):
        do(job, FailingModel(batches))
    return replace(job, resume_policy="resume")


def touch(path: str, *, later: int = 1) -> None:
    status = os.stat(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + later))


def files(job: Job) -> dict[str, bytes]:
    return files_of(Path(job.output))


@pytest.mark.parametrize("batches", [1, 2, 3])
@pytest.mark.parametrize(("batch_size", "slots"), [(8, 1), (1, 1), (5, 3), (100, 2)])
def test_the_bytes_are_those_of_an_uninterrupted_run(
    job: Job, expected: dict[str, bytes], batches: int, batch_size: int, slots: int
) -> None:
    resumed = broken_off(job, batches)
    assert not Path(job.output).exists()
    report = do(resumed, FakePredictor(batch_size, slots))
    assert report.resumed == 8 * batches
    assert files(job) == expected


def test_what_an_unfinished_job_was_begun_with(job: Job, tmp_path: Path) -> None:
    assert begun_options(job.output) == {}
    broken_off(job, 2)
    assert begun_options(job.output)["runtime"] == "fake 1"
    journal = tmp_path / "out" / ".preds.csv.journal"
    first, *rest = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(first + b"{}\n" + b"".join(rest))
    assert begun_options(job.output)["runtime"] == "fake 1", "in the first line, and no other is read"
    journal.write_bytes(b"{}\n" + first)
    assert begun_options(job.output) == {}, "whoever resumes it says what is wrong"
    assert begun_options("-") == {}


def test_the_error_says_what_is_kept(job: Job) -> None:
    with pytest.raises(DeviceError, match="16 videos are kept"):
        do(job, FailingModel(2))


def test_a_failure_before_the_first_commit_leaves_nothing(job: Job) -> None:
    with pytest.raises(DeviceError, match=r"fell off$"):
        do(job, FailingModel(0))
    assert files(job) == {}


def test_an_unfinished_run_is_reported_and_kept(job: Job, expected: dict[str, bytes]) -> None:
    resumed = broken_off(job, 2)
    before = files(job)
    with pytest.raises(ResumeError, match="stopped after 16 videos"):
        do(job)
    assert files(job) == before
    do(resumed)
    assert files(job) == expected


def test_restart_begins_again(job: Job, expected: dict[str, bytes]) -> None:
    broken_off(job, 2)
    report = do(replace(job, resume_policy="restart"))
    assert report.resumed == 0
    assert files(job) == expected


def test_resume_of_nothing_is_a_plain_run(job: Job, expected: dict[str, bytes]) -> None:
    do(replace(job, resume_policy="resume"))
    assert files(job) == expected


def test_an_unfinished_run_without_a_commit_is_no_obstacle(job: Job, expected: dict[str, bytes]) -> None:
    output = Path(job.output)
    output.with_name(".preds.csv.journal").write_bytes(as_journal([NO_JOB]) + b'{"commit":{"en')
    output.with_name(".preds.csv.partial").write_bytes(b"of another job")
    do(job)
    assert files(job) == expected


def test_a_torn_commit_and_what_followed_it_are_cut_off(job: Job, expected: dict[str, bytes]) -> None:
    resumed = broken_off(job, 2)
    for kind, data in (("journal", b'{"commit":{"end":[0,'), ("partial", b"x,1"), ("ids", b"1234"), ("hits", b"\0")):
        with open(Path(job.output).with_name(f".preds.csv.{kind}"), "ab") as file:
            file.write(data)
    assert do(resumed).resumed == 16
    assert files(job) == expected


def test_a_stop_keeps_the_batch_in_hand(job: Job, expected: dict[str, bytes]) -> None:
    stop = StopRequest()

    class StoppingModel(FakePredictor):
        def run(self, features: Features, k: int = 10) -> Predictions:
            answer = super().run(features, k)
            if self.batch_size == 2:
                stop.set()
            self.batch_size = 2
            return answer

    with pytest.raises(Stopped) as stopped:
        do(replace(job, commit_seconds=1e9), StoppingModel(), stop)
    report = do(replace(job, resume_policy="resume"))
    assert report.resumed == stopped.value.scored
    assert files(job) == expected


def test_a_job_may_be_changed_where_its_rows_do_not(job: Job, tmp_path: Path) -> None:
    """A bad record stops the job; resumed with on_error="skip" it gives what "skip" gives from the start."""
    shards.damage_payload(job.shards[2].address, 3)
    with pytest.raises(ShardError, match="24 videos are kept"):
        do(job)
    skipping = replace(job, on_error="skip")
    do(replace(skipping, resume_policy="resume"), FakePredictor(3))
    assert files(job) == whole(skipping, tmp_path / "whole")


CHANGES: dict[str, tuple[Callable[[Job], Job], str]] = {
    "labels": (lambda job: replace(job, top_k=5), "top_k was 10 and is now 5"),
    "fewer shards": (
        lambda job: replace(job, shards=job.shards[:2]),
        r"shard 2 was .*c\.tfrecord and is now not there",
    ),
    "other order": (lambda job: replace(job, shards=job.shards[::-1]), r"shard 0 was .*a\.tfrecord and is now .*c\."),
    "finished shard touched": (lambda job: changed(job, lambda path: touch(path)), r"a\.tfrecord changed since it was"),
    "finished shard grew": (
        lambda job: changed(job, lambda path: grow(path)),
        r"a\.tfrecord changed .* bytes modified",
    ),
    "finished shard gone": (lambda job: changed(job, os.unlink), r"a\.tfrecord"),
    "rows damaged": (lambda job: damaged(job, "partial"), r"partial: its first \d+ bytes are not what was committed"),
    "rows cut": (lambda job: cut(job, "partial"), r"partial: its first \d+ bytes are not what was committed"),
    "journal damaged": (lambda job: damaged(job, "journal"), r"journal: line 1 is damaged"),
}


def changed(job: Job, change: Callable[[str], None]) -> Job:
    change(job.shards[0].address)
    return job


def grow(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"\0")


def work(job: Job, kind: str) -> Path:
    return Path(job.output).with_name(f".preds.csv.{kind}")


def damaged(job: Job, kind: str) -> Job:
    data = bytearray(work(job, kind).read_bytes())
    data[0] ^= 1
    work(job, kind).write_bytes(data)
    return job


def cut(job: Job, kind: str) -> Job:
    os.truncate(work(job, kind), 50)
    return job


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_job_is_refused(job: Job, change: str) -> None:
    make, says = CHANGES[change]
    resumed = make(broken_off(job, 2))
    before = files(job)
    with pytest.raises((ResumeError, InputError), match=says):
        do(resumed)
    assert files(job) == before, "a refusal changes nothing"


@pytest.mark.parametrize(
    "lines",
    [
        b'{"commit":{}}',
        b'{"commit":7}',
        b'{"commit":{"end":[0,"1",2],"scored":1}}',
        b'{"other":{}}',
        b'{"job":{"format":2,"options":{},"shards":[]}}',
        b'{"complete":[]}',
    ],
)
@pytest.mark.parametrize("policy", ["refuse", "resume"])
def test_a_whole_line_that_no_job_writes_is_named(job: Job, lines: bytes, policy: ResumePolicy) -> None:
    broken_off(job, 2)
    add_line(work(job, "journal"), lines)
    with pytest.raises(ResumeError, match=r"journal: line 4 is not what a job writes"):
        do(replace(job, resume_policy=policy))


@pytest.mark.parametrize("change", [{"scored": -1}, {"read": 31}, {"metrics": None}, {"shards": []}, {"other": 1}])
def test_a_completion_record_that_no_job_writes_is_named(job: Job, change: dict[str, object]) -> None:
    done = do(replace(job, output=job.output + "2")).record.to_json()
    resumed = broken_off(job, 3)
    add_line(work(job, "journal"), {"complete": {**done, **change}})
    with pytest.raises(ResumeError, match="the completion record in its journal is damaged"):
        do(resumed)


def test_a_commit_past_the_last_shard_is_refused(job: Job) -> None:
    resumed = broken_off(job, 2)
    lines = entries(work(job, "journal"))
    lines[-1]["commit"]["end"][0] = 3  # within a shard that is not there
    work(job, "journal").write_bytes(as_journal(lines))
    with pytest.raises(ResumeError, match="do not belong together"):
        do(resumed)


def test_a_journal_of_another_format_is_refused(job: Job) -> None:
    resumed = broken_off(job, 2)
    path = work(job, "journal")
    path.write_bytes(path.read_bytes().replace(b'"format":2', b'"format":3'))
    with pytest.raises(ResumeError, match=r"line 1 has format 3, and this version resumes 2; use the version"):
        do(resumed)


def test_another_model_is_refused(job: Job) -> None:
    resumed = broken_off(job, 2)
    model = FakePredictor(facts=replace(FACTS, sha256="e" * 64))
    with pytest.raises(ResumeError, match=r"model_sha256 was f+ and is now e+; restore that"):
        do(resumed, model)


@pytest.mark.parametrize("batches", [1, 2, 3])
def test_a_shard_that_was_read_in_part_may_be_replaced(job: Job, tmp_path: Path, batches: int) -> None:
    """The job goes back to before that shard, so no row of the old one stays."""
    resumed = broken_off(job, batches)
    last = json.loads(work(job, "journal").read_bytes().splitlines()[-1])["commit"]
    index = last["end"][0]
    partial = job.shards[index].address
    new = write_shards(tmp_path / "new", COUNTS, seed=1)[index]
    os.replace(new, partial)
    report = do(resumed)
    assert report.resumed < 8 * batches
    assert files(job) == whole(job, tmp_path / "whole")


def test_a_shard_that_changes_while_the_job_runs_is_an_error(job: Job) -> None:
    class Meddler(FakePredictor):
        def run(self, features: Features, k: int = 10) -> Predictions:
            touch(job.shards[2].address)
            return super().run(features, k)

    with pytest.raises(InputError, match=r"c\.tfrecord: changed (while|since)"):
        do(job, Meddler())
    assert not Path(job.output).exists()


def test_records_of_older_files_do_not_stay(job: Job, expected: dict[str, bytes]) -> None:
    """A run that quarantines nothing takes away the quarantine that an older run left beside its output."""
    output = Path(job.output)
    output.write_bytes(b"old")
    output.with_name("preds.csv.quarantine.jsonl").write_bytes(b"old")
    output.with_name("preds.csv.done.json").write_bytes(b"old")
    broken_off(job, 2)
    assert {data for name, data in files(job).items() if not name.startswith(".")} == {b"old"}
    do(replace(job, resume_policy="resume"))
    assert files(job) == expected


def test_the_record_says_what_was_done(job: Job) -> None:
    do(job)
    record = json.loads(files(job)["preds.csv.done.json"])
    assert (record["read"], record["scored"], record["quarantined"], record["duplicates"]) == (30, 30, 0, 0)
    assert [shard["records"] for shard in record["shards"]] == COUNTS
    assert [shard["bytes"] for shard in record["shards"]] == [shard.stat.size for shard in job.shards]
    assert record["output"]["bytes"] == os.path.getsize(job.output)
    assert record["options"] == {
        "model_sha256": "f" * 64,
        "provider": "FakeProvider",
        "runtime": "fake 1",
        "top_k": 10,
        "on_error": "fail",
    }
