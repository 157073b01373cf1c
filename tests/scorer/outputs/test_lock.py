"""One output, one owner, and a dead owner is no obstacle."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


_FORKING = """
import os, sys
from pathlib import Path
from scorer.errors import ResumeError
from scorer.outputs.lock import owned
lock = Path(sys.argv[1])
with owned(lock, "preds.csv"):
    if os.fork():
        os.wait()
    else:
        try:
            with owned(lock, "preds.csv"):
                print("let in", flush=True)
        except ResumeError as error:
            print(error, flush=True)
        os._exit(0)
"""


_LEAVING = """
import os, sys
from pathlib import Path
from scorer.outputs.lock import owned
lock = Path(sys.argv[1])
with owned(lock, "preds.csv"):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        print(lock.exists())
"""


_FORKING_WITHIN = """
import os, signal, sys, threading
from pathlib import Path
from scorer.outputs import lock
held, done = threading.Event(), threading.Event()
def hold():
    with lock._guard:
        held.set()
        done.wait()
thread = threading.Thread(target=hold)
thread.start()
held.wait()
if child := os.fork():
    print("ended with", os.waitpid(child, 0)[1])
    done.set()
    thread.join()
else:
    signal.alarm(20)
    with lock.owned(Path(sys.argv[1]), "preds.csv"):
        print("owned", flush=True)
    os._exit(0)
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
    """As whatever a library forks may for a moment after its parent was killed."""
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


def test_another_thread_is_kept_out_and_takes_nothing_away(tmp_path: Path) -> None:
    """The kernel's lock alone would let it in, and its end would remove the first's lock."""
    lock, alias = tmp_path / "lock", tmp_path / "folder" / ".." / "lock"
    (tmp_path / "folder").mkdir()
    refused: list[str] = []

    def second(path: Path) -> None:
        try:
            with owned(path, "preds.csv"):
                pass
        except ResumeError as error:
            refused.append(str(error))

    with owned(lock, "preds.csv"):
        for path in (lock, alias):
            thread = threading.Thread(target=second, args=(path,))
            thread.start()
            thread.join()
        assert len(refused) == 2
        assert "is being written by another thread of this process" in refused[0]
        assert lock.exists()
        with_another_process = subprocess.run(
            [sys.executable, "-c", _HOLDER, str(lock)], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert f"by process {os.getpid()} on " in with_another_process.stderr, "the kernel's lock was dropped"
    with owned(lock, "preds.csv"):
        pass


def test_of_many_threads_one_at_a_time_holds_it(tmp_path: Path) -> None:
    lock, inside, most, done = tmp_path / "lock", 0, 0, 0

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(200):
            with suppress(ResumeError), owned(lock, "preds.csv"):
                inside += 1
                most = max(most, inside)
                inside -= 1
                done += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert done > 0
    assert not lock.exists()


def test_a_forked_child_does_not_hold_its_parents_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FORKING, str(tmp_path / "lock")]
    says = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "preds.csv is being written by process " in says


def test_a_forked_child_that_leaves_takes_no_lock_away(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _LEAVING, str(tmp_path / "lock")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "True\n"
    assert not (tmp_path / "lock").exists()


def test_a_child_forked_while_another_thread_takes_a_lock_does_not_wait_for_ever(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _FORKING_WITHIN, str(tmp_path / "lock")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "owned\nended with 0\n"


@pytest.mark.parametrize("kind", ["hard link", "pipe", "folder", "symbolic link"])
def test_what_somebody_planted_in_its_place_is_left_alone(tmp_path: Path, kind: str) -> None:
    lock, precious = tmp_path / "lock", tmp_path / "precious"
    precious.write_bytes(b"precious")
    plant = {
        "hard link": lambda: os.link(precious, lock),
        "pipe": lambda: os.mkfifo(lock),
        "folder": lock.mkdir,
        "symbolic link": lambda: lock.symlink_to(precious),
    }
    plant[kind]()
    with pytest.raises(OutputError, match="cannot lock"), owned(lock, "preds.csv"):
        pass
    assert precious.read_bytes() == b"precious"


def test_a_lock_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lock").write_bytes(b"process 1 on x")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(OutputError, match="belongs to another user"), owned(tmp_path / "lock", "preds.csv"):
        pass


def test_a_lock_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot lock"), owned(tmp_path / "absent" / "lock", "preds.csv"):
        pass


@pytest.mark.parametrize(("error", "remedy"), [(errno.ENOLCK, "local folder"), (errno.EACCES, "fix that")])
def test_only_a_folder_without_locks_asks_for_a_local_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, remedy: str
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputError, match=remedy), owned(tmp_path / "lock", "preds.csv"):
        pass
