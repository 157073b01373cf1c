"""Outputs that are written straight through: what cannot be opened or held is named, and a stop is heeded."""

from __future__ import annotations

import io
import os
import tempfile
import threading
from pathlib import Path

import pytest

from scorer.errors import OutputError
from scorer.job.spec import Job, Stopped
from scorer.system.signals import StopRequest
from tests.scorer.fakes import do, write_shards
from tests.shards import sources


@pytest.fixture
def job(tmp_path: Path) -> Job:
    os.mkfifo(tmp_path / "pipe")
    return Job(sources(write_shards(tmp_path / "shards", [9])), str(tmp_path / "pipe"))


def test_a_pipe_may_get_its_reader_late(job: Job) -> None:
    rows: list[bytes] = []
    reader = threading.Timer(0.1, lambda: rows.append(Path(job.output).read_bytes()))
    reader.start()
    report = do(job)
    reader.join()
    assert len(rows[0]) == report.record.output.bytes


def test_a_stop_ends_the_wait_for_a_reader(job: Job) -> None:
    stop = StopRequest()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Stopped):
        do(job, stop=stop)


def test_trouble_in_the_temporary_folder_names_it(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(OutputError, match=r"absent: cannot hold .*; make room there, or name another folder in TMPDIR"):
        do(Job(job.shards, os.devnull))


def test_a_full_temporary_folder_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda buffering: io.FileIO("/dev/full", "r+"))
    with pytest.raises(OutputError, match="temporary files: No space left on device"):
        do(Job(job.shards, os.devnull))
