"""Every call that reaches the disk fails once, and the process dies at every one of them: nothing is lost or mixed."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scorer.errors import OutputError
from scorer.outputs import append, atomic, file, journal, lock, own
from tests.scorer.fakes import do, files_of
from tests.scorer.job.kill_points import OLD, FaultyOs, each_batch_on_its_own, faulty_job, faulty_shards


@pytest.fixture(autouse=True)
def commits() -> Iterator[None]:
    with each_batch_on_its_own():
        yield


@pytest.mark.parametrize(("error", "embeddings"), [(errno.EIO, ""), (errno.ENOSPC, ""), (errno.ENOSPC, "npy")])
def test_each_failing_call_leaves_the_old_file_or_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, embeddings: str
) -> None:
    shards = faulty_shards(tmp_path / "shards")
    whole = faulty_job(shards, tmp_path / "whole", old=False, embeddings=embeddings)
    do(whole)
    expected = files_of(Path(whole.output))
    at = calls = 0
    while calls >= at:
        at += 1
        job = faulty_job(shards, tmp_path / str(at), old=at % 2 == 0, embeddings=embeddings)
        faulty = FaultyOs(at, error)
        for module in (append, atomic, file, journal, lock, own):
            monkeypatch.setattr(module, "os", faulty)
        failed = False
        try:
            do(job)
        except OutputError:
            failed = True
        monkeypatch.undo()
        calls = faulty.calls
        output = Path(job.output)
        if output.exists():
            assert output.read_bytes() in (OLD, expected["preds.csv"])
        else:
            assert failed
        do(job)
        assert files_of(output) == expected, f"bytes differ after call {at} failed"
    assert at > 50, "nothing failed"


@pytest.mark.parametrize("formats", [["pairs"], ["pairs", "npy"], ["parquet", "parquet"]])
def test_a_kill_at_every_call_loses_nothing(formats: list[str]) -> None:
    command = [sys.executable, "-m", "tests.scorer.job.kill_points", *formats]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    kills = int(result.stdout.split()[0])
    assert kills > 100, result.stdout
