"""What every sink promises, with every format: append, commit, complete; and one that outlives its process: resume."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from scorer.errors import ResumeError
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.source import FileStat
from scorer.job.record import ShardRecord
from scorer.outputs.sink import Commit, ResumePolicy, ShardId, Sink
from tests.scorer.outputs.harness import (
    BAD,
    HARNESSES,
    OBJECTS,
    ONCE,
    RECORDS,
    Harness,
    ObjectHarness,
    Once,
    SinkDriver,
    chunk,
    key,
    record,
    rows,
)

ALL = sum(RECORDS)


def exactly(count: int) -> list[tuple[bytes, list[int], list[float]]]:
    """The rows of the first records as a user finds them, with six decimals."""
    return [(name, labels, [round(score, 6) for score in scores]) for name, labels, scores in rows(count)]


RESUMABLE = [*HARNESSES, *(f"{scheme}, {name}" for scheme, name in OBJECTS)]


@pytest.fixture(params=RESUMABLE)
def harness(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    return resumable(request, tmp_path, monkeypatch)


@pytest.fixture(params=[*RESUMABLE, *ONCE])
def either(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Once:
    """A resumable one, or one that is not."""
    return ONCE[request.param](tmp_path) if request.param in ONCE else resumable(request, tmp_path, monkeypatch)


def resumable(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    if request.param in HARNESSES:
        return HARNESSES[request.param](folder)
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    scheme, row_format = request.param.split(", ")
    return ObjectHarness(folder, request.getfixturevalue(f"{scheme}_server"), row_format, scheme)


def complete(harness: Harness, policy: ResumePolicy = "refuse") -> None:
    with harness.open(key(), policy) as sink:
        SinkDriver(sink, key()).complete()


def crash_after(harness: Harness, committed: int, appended: int = 0) -> None:
    """A run that commits so many records, appends some more, and dies."""
    with harness.open(key(), "restart") as sink:
        driver = SinkDriver(sink, key())
        if committed:
            driver.append(committed)
            driver.commit()
        if appended:
            driver.append(appended)
        snapshot = harness.snapshot()
    harness.restore(snapshot)


def test_a_whole_job(either: Once) -> None:
    with either.open(key(), "refuse") as sink:
        assert (sink.last, sink.completed, [*sink.finished]) == (None, None, [])
        SinkDriver(sink, key()).complete()
        assert sink.completed == record()
        assert [records for _, records in sink.finished] == RECORDS
    assert either.output() == (exactly(ALL), record())
    assert either.unfinished() == []


def test_a_job_without_a_video_has_a_whole_output(either: Once) -> None:
    stat = FileStat(0, 1)
    nothing = {"scored": 0, "shards": [ShardRecord("/s/0", stat, 0).to_json()]}
    with either.open(replace(key(), shards=(ShardId("/s/0", stat),)), "refuse") as sink:
        sink.append(replace(chunk(BEGINNING, 0), end=Position(1, 0, 0), finished=[(0, 0)]))
        sink.commit(Commit(Position(1, 0, 0), finished=((stat, 0),)))
        sink.complete(nothing)
    assert either.output() == ([], nothing)


@pytest.mark.parametrize("committed", [True, False])
def test_what_is_kept_is_read_from_its_start_and_grows_on(either: Once, committed: bool) -> None:
    with either.open(key(), "refuse") as sink:
        driver = SinkDriver(sink, key())
        for done in (6, 11):
            driver.append(done - driver.done)
            if committed:
                driver.commit()
            for _ in range(2):
                check_kept(sink, either, done)
        driver.complete()
    assert either.output() == (exactly(ALL), record())


def check_kept(sink: Sink, harness: Once, records: int) -> None:
    """What is kept is of so many records."""
    with sink.kept("ids") as ids:
        assert len(ids.read()) == 8 * len(rows(records)) * ("ids" in harness.keeps)
    if sink.resumable:
        with sink.kept("quarantine") as quarantine:
            bad = len([record for record in BAD if record < records])
            assert len(quarantine.readlines()) == bad * ("quarantine" in harness.keeps)


def test_an_older_output_stays_until_the_new_one_is_whole(harness: Harness) -> None:
    complete(harness)
    old = harness.output()
    with harness.open(key(version=2), "refuse") as sink:
        driver = SinkDriver(sink, key(version=2))
        driver.append(4)
        driver.commit()
        assert harness.output() == old
    assert harness.output() == old


@pytest.mark.parametrize("committed", [0, 1, 5, 8, 12, ALL])
@pytest.mark.parametrize("appended", [0, 1, 9])
def test_a_crash_loses_what_was_not_committed_and_nothing_else(harness: Harness, committed: int, appended: int) -> None:
    crash_after(harness, committed, appended)
    with harness.open(key(), "resume") as sink:
        driver = SinkDriver(sink, key())
        assert driver.done == committed
        assert len(sink.finished) == driver.end.shard
        driver.complete()
    assert harness.output() == (exactly(ALL), record())
    assert harness.unfinished() == []


def test_a_crash_after_several_commits_loses_nothing_of_any(harness: Harness) -> None:
    with harness.open(key(), "refuse") as sink:
        driver = SinkDriver(sink, key())
        for count in (2, 4, 5):
            driver.append(count)
            driver.commit()
        driver.append(3)
        snapshot = harness.snapshot()
    harness.restore(snapshot)
    with harness.open(key(), "resume") as sink:
        driver = SinkDriver(sink, key())
        assert (driver.done, len(sink.finished)) == (11, 2)
        driver.complete()
    assert harness.output() == (exactly(ALL), record())


def test_what_is_kept_is_of_what_was_committed_and_appended(harness: Harness) -> None:
    crash_after(harness, 6, 3)
    with harness.open(key(), "resume") as sink:
        driver = SinkDriver(sink, key())
        driver.append(5)
        driver.commit()
        check_kept(sink, harness, 11)


def test_an_unfinished_run_is_refused_and_stays(harness: Harness) -> None:
    crash_after(harness, 6)
    with pytest.raises(ResumeError), harness.open(key(), "refuse"):
        pass
    with harness.open(key(), "resume") as sink:
        assert SinkDriver(sink, key()).done == 6


def test_an_unfinished_run_that_committed_nothing_is_no_obstacle(harness: Harness) -> None:
    crash_after(harness, 0, 4)
    complete(harness)
    assert harness.output() == (exactly(ALL), record())


def test_restart_begins_from_nothing(harness: Harness) -> None:
    crash_after(harness, 6)
    with harness.open(key(), "restart") as sink:
        assert sink.last is None
        SinkDriver(sink, key()).complete()
    assert harness.output() == (exactly(ALL), record())


def test_another_job_is_not_resumed(harness: Harness) -> None:
    crash_after(harness, 6)
    with pytest.raises(ResumeError), harness.open(key(model="other"), "resume"):
        pass
    with pytest.raises(ResumeError), harness.open(key(more="options"), "resume"):
        pass


def test_a_job_that_leaves_without_a_commit_leaves_nothing(harness: Harness) -> None:
    with harness.open(key(), "refuse") as sink:
        SinkDriver(sink, key()).append(3)
    assert harness.unfinished() == []
    assert harness.output() is None


_FORKING = """
import os, sys
from pathlib import Path
from tests.scorer.outputs.harness import HARNESSES, SinkDriver, key
harness = HARNESSES[sys.argv[1]](Path(sys.argv[2]))
with harness.open(key(), "refuse") as sink:
    driver = SinkDriver(sink, key())
    driver.append(3)
    if child := os.fork():
        os.waitpid(child, 0)
        driver.complete()
if child:
    print(len(harness.output()[0]), harness.unfinished())
"""


@pytest.mark.parametrize("name", ["file, pairs", "npy", "part file"])
def test_a_forked_child_that_leaves_a_job_takes_none_of_its_work_away(tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", _FORKING, name, str(tmp_path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.stdout == f"{len(rows(ALL))} []\n", done.stderr


def test_a_discarded_job_leaves_the_older_output(harness: Harness) -> None:
    complete(harness)
    old = harness.output()
    with harness.open(key(), "refuse") as sink:
        driver = SinkDriver(sink, key())
        driver.append(4)
        driver.commit()
        sink.discard()
    assert harness.output() == old
    assert harness.unfinished() == []


def test_there_is_one_owner(harness: Harness) -> None:
    with harness.open(key(), "refuse") as sink:
        for policy in get_args(ResumePolicy):
            with pytest.raises(ResumeError), harness.open(key(), policy):
                pass
        SinkDriver(sink, key()).complete()
    assert harness.output() == (exactly(ALL), record())
