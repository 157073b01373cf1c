"""A folder that others may write to: what they plant is neither written through, nor continued from, nor waited for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c

from scorer.errors import DeviceError, OutputError, ResumeError
from scorer.job.spec import Job
from scorer.outputs import file as file_sink
from tests import shards
from tests.scorer.fakes import FailingModel, do, files_of, write_shards
from tests.scorer.journals import as_journal, entries

PRECIOUS = b"somebody's own\n"
WORK = ["lock", "journal", "partial", "quarantine", "ids", "hits"]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr("scorer.pipeline.predict.COALESCED_VIDEOS", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_bytes(PRECIOUS)
    found = shards.sources(write_shards(tmp_path / "shards", [9, 14, 7]))
    return Job(found, str(tmp_path / "out" / "preds.csv"), commit_seconds=0.0)


def work(job: Job, kind: str) -> Path:
    return Path(job.output).with_name(f".preds.csv.{kind}")


def stopped(job: Job) -> Job:
    """A run that was broken off; returns the job that resumes it."""
    with pytest.raises(DeviceError):
        do(job, FailingModel(2))
    return replace(job, resume_policy="resume")


def hard_link(path: Path, precious: Path) -> None:
    os.link(precious, path)


def symbolic_link(path: Path, precious: Path) -> None:
    path.symlink_to(precious)


def pipe(path: Path, precious: Path) -> None:
    os.mkfifo(path)


PLANTS = [hard_link, symbolic_link, pipe]


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("kind", WORK)
def test_nothing_is_written_through_what_was_planted(
    job: Job, tmp_path: Path, kind: str, plant: Callable[[Path, Path], None]
) -> None:
    precious = tmp_path / "precious"
    plant(work(job, kind), precious)
    if kind in ("lock", "journal"):
        with pytest.raises((OutputError, ResumeError), match=r"symbolic link|hard link|not a regular file"):
            do(job)
        assert work(job, kind).lstat()
    if kind != "lock":
        do(replace(job, resume_policy="restart"))
        assert Path(job.output).stat().st_nlink == 1
    assert precious.read_bytes() == PRECIOUS


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("kind", WORK[1:])
def test_nothing_planted_is_resumed(job: Job, tmp_path: Path, kind: str, plant: Callable[[Path, Path], None]) -> None:
    """Even where the bytes are right."""
    resumed = stopped(job)
    precious = tmp_path / "precious"
    os.replace(work(job, kind), precious)
    data = precious.read_bytes()
    plant(work(job, kind), precious)
    with pytest.raises(ResumeError, match=r"cannot be trusted: .*(symbolic link|hard link|not a regular file)"):
        do(resumed)
    assert precious.read_bytes() == data
    do(replace(job, resume_policy="restart"))


@pytest.mark.parametrize("kind", WORK[1:])
def test_files_of_another_user_are_not_resumed(job: Job, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    resumed = stopped(job)
    foreign = os.stat(work(job, kind)).st_ino
    really = os.fstat

    def fstat(descriptor: int) -> Any:
        status = really(descriptor)
        return os.stat_result([*status[:4], status.st_uid + 1, *status[5:]]) if status.st_ino == foreign else status

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(ResumeError, match=r"cannot be trusted: .* belongs to another user"):
        do(resumed)


def test_rows_that_were_exchanged_before_the_last_rename_are_not_put_in_place(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    really = file_sink._check_there

    def exchanged(source: Path, *rest: Any) -> None:
        data = source.read_bytes()
        source.unlink()
        (tmp_path / "forged").write_bytes(data)
        os.link(tmp_path / "forged", source)
        really(source, *rest)

    monkeypatch.setattr(file_sink, "_check_there", exchanged)
    with pytest.raises(OutputError, match="hard link"):
        do(job)
    assert not Path(job.output).exists()


@pytest.mark.parametrize("kind", WORK[1:])
def test_a_file_that_comes_between_removal_and_creation_is_not_taken_over(
    job: Job, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    really, planted = file_sink.FileSink._remove_work, False

    def removing(self: file_sink.FileSink) -> None:
        nonlocal planted
        really(self)
        if not planted:
            work(job, kind).write_bytes(PRECIOUS)
            planted = True

    monkeypatch.setattr(file_sink.FileSink, "_remove_work", removing)
    with pytest.raises(OutputError, match="File exists"):
        do(job)


def change_line(job: Job, number: int, change: Callable[[Any], None]) -> None:
    """Change a line of the journal, which stays a whole one."""
    lines = entries(work(job, "journal"))
    change(next(iter(lines[number].values())))
    work(job, "journal").write_bytes(as_journal(lines))


OPTIONS = ["model_sha256", "provider", "runtime", "top_k"]


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_must_be_stated(job: Job, name: str) -> None:
    resumed = stopped(job)
    change_line(job, 0, lambda entry: entry["options"].pop(name))
    with pytest.raises(ResumeError, match=f"{name} was not stated and is now"):
        do(resumed)


def test_an_option_that_this_version_does_not_know_is_refused(job: Job) -> None:
    resumed = stopped(job)
    change_line(job, 0, lambda entry: entry["options"].update(threshold=0.5))
    with pytest.raises(ResumeError, match=r"threshold was 0\.5 and is now not known"):
        do(resumed)


COUNTS: dict[str, Callable[[Any], None]] = {
    "scored": lambda entry: entry.update(scored=17),
    "quarantined": lambda entry: entry.update(set_aside=1),
    "end": lambda entry: entry.update(end=[0, 16, 100]),
    "record": lambda entry: entry["end"].__setitem__(1, 2**62),
    "finished": lambda entry: entry.update(finished=[]),
    "records": lambda entry: entry["finished"][0].__setitem__(2, 2**62),
    "ids": lambda entry: entry["marks"].update(ids=[2**62, 0]),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_that_disagree_are_refused(job: Job, name: str) -> None:
    resumed = stopped(job)
    change_line(job, 2, COUNTS[name])
    with pytest.raises(ResumeError, match="do not belong together"):
        do(resumed)


@pytest.mark.parametrize("kind", ["rows", "hits"])
def test_a_length_that_is_not_there_is_seen_before_a_checksum_is_computed(job: Job, kind: str) -> None:
    resumed = stopped(job)
    change_line(job, 2, lambda entry: entry["marks"].update({kind: [2**62, 0]}))
    with pytest.raises(ResumeError, match="are not what was committed"):
        do(resumed)


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "a count that nothing else tells": lambda data: data.replace(b'"bytes_lost":0', b'"bytes_lost":9', 1),
    "a shard's version": lambda data: re.sub(rb'"begun":\[(\d+),\d+', rb'"begun":[\1,7', data, count=1),
    "a line that stands twice": lambda data: b"".join(
        line * (1 + (i == 1)) for i, line in enumerate(data.splitlines(True))
    ),
    "no checksums": lambda data: re.sub(rb',"crc32c":"[0-9a-f]{8}"', b"", data),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_journal_that_was_changed_is_damaged(job: Job, change: str) -> None:
    resumed = stopped(job)
    data = work(job, "journal").read_bytes()
    changed = CHANGES[change](data)
    assert changed != data
    work(job, "journal").write_bytes(changed)
    with pytest.raises(ResumeError, match=r"journal: line \d is damaged"):
        do(resumed)


@pytest.mark.parametrize("kind", ["partial", "quarantine"])
def test_rows_that_changed_before_a_resumed_rename_are_not_published(
    job: Job, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A complete job is not scored again, but its bytes are looked at."""
    shards.damage_payload(job.shards[1].address, 3)
    skipping = replace(job, on_error="skip", resume_policy="resume")
    with monkeypatch.context() as patch:
        patch.setattr(file_sink.FileSink, "_move_all", failing)
        with pytest.raises(DeviceError):
            do(skipping)
    shards.flip_bit(work(job, kind), 50)
    with pytest.raises(ResumeError, match=f"{kind}: it is not what was committed"):
        do(skipping)
    assert not Path(job.output).exists()
    shards.flip_bit(work(job, kind), 50)
    do(skipping)


def failing(*arguments: object) -> None:
    raise DeviceError("the device fell off")


def test_metric_records_that_are_none_are_refused(job: Job) -> None:
    """Whatever the journal says of their bytes."""
    resumed = stopped(job)
    forged = bytes(work(job, "hits").stat().st_size)
    work(job, "hits").write_bytes(forged)
    change_line(job, 2, lambda entry: entry["marks"].update(hits=[len(forged), crc32c(forged)]))
    with pytest.raises(ResumeError, match="what the metrics need is damaged"):
        do(resumed)


def test_a_record_without_a_commit_is_refused(job: Job) -> None:
    whole = do(job).record.to_json()
    resumed = stopped(job)
    first = entries(work(job, "journal"))[0]
    work(job, "journal").write_bytes(as_journal([first, {"complete": whole}]))
    with pytest.raises(ResumeError, match="do not belong together"):
        do(resumed)


@pytest.mark.parametrize("start", [b"", b'{"job":', b'{"job":{"format":2}}\n', b"[" * 100_000 + b"\n"])
@pytest.mark.parametrize("size", [1 << 20, 1 << 40])
def test_an_endless_journal_is_refused(job: Job, start: bytes, size: int) -> None:
    work(job, "journal").write_bytes(start)
    os.truncate(work(job, "journal"), size)  # zeros that take no room
    if size == 1 << 20 and b"\n" not in start:
        assert do(job).record.scored == 30, "as a power loss leaves a first line"
        return
    with pytest.raises(ResumeError, match=r"journal: line \d is (damaged|not what a job writes)"):
        do(job)


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_the_mode_of_an_older_output_stays_and_the_work_has_it_too(job: Job, mode: int) -> None:
    shards.damage_payload(job.shards[1].address, 3)
    skipping = replace(job, on_error="skip")
    Path(job.output).write_bytes(b"old")
    os.chmod(job.output, mode)
    resumed = stopped(skipping)
    for kind in WORK[1:]:
        assert work(job, kind).stat().st_mode & 0o777 == mode, kind
    do(resumed)
    for name in ("", ".quarantine.jsonl"):
        assert Path(job.output + name).stat().st_mode & 0o777 == mode


def test_a_link_of_another_user_does_not_choose_the_file_to_overwrite(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(job.output).symlink_to(tmp_path / "precious")
    really = os.lstat

    def lstat(path: Any) -> Any:
        status = really(path)
        foreign = os.fspath(path) == job.output
        return os.stat_result([*status[:4], 12345, *status[5:]]) if foreign else status

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(OutputError, match=re.escape(f"{job.output} is a link that belongs to another user")):
        do(job)
    monkeypatch.undo()
    do(job)
    assert (tmp_path / "precious").read_bytes() != PRECIOUS, "one's own is followed"


def test_a_refused_folder_is_as_it_was(job: Job) -> None:
    os.mkfifo(work(job, "journal"))
    with pytest.raises(ResumeError):
        do(job)
    work(job, "journal").unlink()
    assert files_of(Path(job.output)) == {}
