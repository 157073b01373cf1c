"""SIGINT and SIGTERM end `score` with its work kept, and a second one at once."""

from __future__ import annotations

import fcntl
import os
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from scorer.system.signals import interruptible, stop_on_signals
from tests import onnx_models
from tests.scorer.fakes import INPUTS, LABELS, files_of, write_shards
from tests.scorer.job.committing import committing

VIDEOS = [6000, 6000]
FULL_FOR = 200
"""Looks, 10 ms apart, at which a full pipe holds the same bytes; how many depends on how they were written."""


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A job of 12,000 batches of one video."""
    return committing(tmp_path_factory.mktemp("signals"), VIDEOS, 1)


def start(command: list[str], output: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([*command, "-o", str(output)], stderr=subprocess.PIPE, text=True)


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("nothing happened within a minute")


def is_full(pipe: int) -> Callable[[], bool]:
    """Whether nothing has come into `pipe`, which has something, for FULL_FOR looks."""
    seen: list[int] = []

    def look() -> bool:
        seen.append(waiting_bytes(pipe))
        return seen[-1] > 0 and seen[-FULL_FOR:] == [seen[-1]] * FULL_FOR

    return look


def waiting_bytes(pipe: int) -> int:
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_keeps_the_work_and_names_the_command_that_resumes(
    command: list[str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (tmp_path / "whole").mkdir()
    whole = tmp_path / "whole" / "preds.csv"
    subprocess.run([*command, "-o", str(whole), "--quiet"], check=True)
    output = tmp_path / "preds.csv"
    journal = tmp_path / ".preds.csv.journal"
    process = start(command, output)
    wait_until(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 3)
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code, errors
    assert not output.exists()
    assert not (tmp_path / ".preds.csv.lock").exists()
    told, kept = errors.splitlines()
    assert number.name in told
    resume = shlex.split(kept.split("resume with: ")[1])
    assert resume.count("--resume") == 1
    subprocess.run([*resume, "--quiet"], check=True)
    assert files_of(output) == files_of(whole)


def test_a_second_signal_stops_at_once(command: list[str], tmp_path: Path) -> None:
    """The reader of the pipe takes nothing, so the first signal cannot be obeyed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = start(command, pipe)
    with open(pipe, "rb") as reader:
        assert process.stderr is not None
        wait_until(is_full(reader.fileno()))
        process.send_signal(signal.SIGINT)
        assert "committing the batch in hand" in process.stderr.readline()
        time.sleep(0.2)  # between its handler and its next write Python misses a signal till the next
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "score: stopped at once\n"
        process.stderr.close()


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_on_signals() as stop:
            signal.raise_signal(signal.SIGINT)
            assert not stop.is_set()
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


IN_EVERY_LINE = """
import itertools, signal, sys
from scorer.system.signals import interruptible, stop_on_signals

def trace(frame, event, argument):
    global lines
    lines += event == "line"
    if lines == wanted and event == "line":
        signal.raise_signal(signal.SIGINT)
    return trace

for wanted in itertools.count(1):
    lines = 0
    with stop_on_signals() as stop:
        sys.settrace(trace)
        stop.wait(0.001)
        sys.settrace(None)
        if lines < wanted:
            break
        assert stop.is_set()
print(wanted - 1)
"""


def test_a_signal_within_a_wait_for_it_does_not_deadlock() -> None:
    """The handler runs at every line of `wait`; threading.Event holds a lock in some of them, and `set` wants it."""
    done = subprocess.run([sys.executable, "-c", IN_EVERY_LINE], capture_output=True, text=True, timeout=60)
    assert int(done.stdout) > 0, done.stderr


def wait_for_work(process: int) -> None:
    """Until it has computed for three seconds: it has started by then, and does not end by itself."""
    ticks, used = os.sysconf("SC_CLK_TCK"), Path(f"/proc/{process}/stat")
    wait_until(lambda: sum(map(int, used.read_text().rsplit(")")[1].split()[11:13])) > 3 * ticks)


def endless(path: Path) -> str:
    """A model that runs for ever, from the first time that it is asked."""
    flag = helper.make_tensor_value_info("on", TensorProto.BOOL, [])
    value = helper.make_tensor_value_info("value", TensorProto.FLOAT, None)
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still"]), helper.make_node("Neg", ["value"], ["next"])],
        "body",
        [helper.make_tensor_value_info("turn", TensorProto.INT64, []), flag, value],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    proto = onnx_models.build_model(inputs=INPUTS, labels=LABELS)
    gemm = proto.graph.node[1]
    gemm.output[0] = "before"
    loop = helper.make_node("Loop", ["turns", "", "before"], ["logits"], body=body)
    proto.graph.initializer.append(helper.make_tensor("turns", TensorProto.INT64, [], [1 << 62]))
    proto.graph.node.insert(2, loop)
    onnx.save(proto, path)
    return str(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", ["score", "inspect"])
def test_a_model_that_runs_for_ever_while_it_is_opened_can_be_stopped(
    tmp_path: Path, number: signal.Signals, program: str
) -> None:
    model = endless(tmp_path / "endless.onnx")
    given = {"score": [*write_shards(tmp_path, [1]), "-o", str(tmp_path / "x.csv"), "--model"], "inspect": []}
    process = subprocess.Popen(
        [sys.executable, "-m", "yt8m", program, *given[program], model], stderr=subprocess.PIPE, text=True
    )
    try:
        wait_for_work(process.pid)
        process.send_signal(number)
        assert process.wait(timeout=60) == -number
        assert process.stderr is not None
        assert process.stderr.read() == ""
    finally:
        process.kill()  # nothing else ends it
        process.communicate()


PROGRAM = """
import signal, sys, threading
from scorer.api import Scorer
before = signal.getsignal(signal.SIGINT)
try:
    Scorer(sys.argv[1], device="cpu")
except KeyboardInterrupt:
    assert signal.getsignal(signal.SIGINT) is before
    if sys.argv[2:]:
        print(Scorer(sys.argv[2], device="cpu"), flush=True)
    raise
"""


@pytest.mark.parametrize("another", [False, True])
def test_a_program_heeds_ctrl_c_while_a_model_is_opened(tmp_path: Path, another: bool) -> None:
    """It may open another model, or end; the one that runs for ever does not keep it."""
    other = [onnx_models.save_model(tmp_path / "good.onnx", inputs=INPUTS, labels=LABELS)] if another else []
    command = [sys.executable, "-c", PROGRAM, endless(tmp_path / "endless.onnx"), *other]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for_work(process.pid)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert ("good.onnx on cpu" in output) == another
        assert errors.splitlines()[-1] == "KeyboardInterrupt"
        assert process.returncode == -signal.SIGINT
    finally:
        process.kill()  # nothing else ends it
        process.communicate()


def test_what_an_interruptible_action_gives_and_raises_is_passed_on() -> None:
    def failing() -> None:
        raise KeyError("x")

    assert interruptible(threading.current_thread) is not threading.current_thread()
    with pytest.raises(KeyError, match="x"):
        interruptible(failing)
    in_thread = []
    thread = threading.Thread(target=lambda: in_thread.append(interruptible(threading.current_thread)))
    thread.start()
    thread.join()
    assert in_thread == [thread], "left alone where it is not the main one"
