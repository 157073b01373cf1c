"""One output, one owner, and a dead owner is no obstacle."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from scorer.cli import score
from scorer.errors import OutputError, ResumeError
from scorer.outputs.lock import owned
from tests import onnx_models
from tests.scorer.fakes import INPUTS, LABELS, write_shards

_HOLDER = """
import sys
from pathlib import Path
from scorer.outputs.lock import owned
with owned(Path(sys.argv[1]), "preds.csv"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds `lock` until its standard input closes."""
    command = [sys.executable, "-c", _HOLDER, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with holder(lock) as process:
        says = rf"preds\.csv is being written by process {process.pid} on \S+; wait"
        with pytest.raises(ResumeError, match=says), owned(lock, "preds.csv"):
            pass
        assert lock.exists(), "the lock of the other was taken away"
    assert not lock.exists()


def test_a_dead_process_is_no_obstacle(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with holder(lock) as process:
        process.kill()
    assert lock.exists()
    with owned(lock, "preds.csv"):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
    assert not lock.exists()


def test_a_child_that_outlives_its_parent_does_not_hold_the_lock(tmp_path: Path) -> None:
    """As a decoding worker may for a moment after its parent was killed."""
    code = _HOLDER.replace("sys.stdin.read()", "import os; os.fork() or sys.stdin.read()")
    lock = tmp_path / "lock"
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
        process.wait()
        with owned(lock, "preds.csv"):
            pass
        assert process.stdin is not None
        process.stdin.close()


def test_the_command_says_who_holds_its_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx_models.save_model(tmp_path / "tiny.onnx", inputs=INPUTS, labels=LABELS)
    arguments = [*write_shards(tmp_path, [3]), "-o", str(tmp_path / "preds.csv"), "--model", model]
    with holder(tmp_path / ".preds.csv.lock") as process:
        assert score.main([*arguments, "--restart"]) == 9
        assert f"is being written by process {process.pid} on " in capfd.readouterr().err
    assert score.main(arguments) == 0


def test_a_lock_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot lock"), owned(tmp_path / "absent" / "lock", "preds.csv"):
        pass


@pytest.mark.parametrize(("error", "remedy"), [(errno.ENOLCK, "local folder"), (errno.EACCES, "mend that")])
def test_only_a_folder_without_locks_asks_for_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, remedy: str
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=remedy), owned(tmp_path / "lock", "preds.csv"):
        pass
