"""TERM=dumb and NO_COLOR get no escape codes at all, from any command, on a terminal of any width."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests.onnx_models import save_model
from tests.scorer.fakes import INPUTS, LABELS, write_shards
from tests.terminals import read_terminal

ROOT = Path(__file__).parents[1]


def on_a_terminal(folder: Path, command: list[str], **environment: str) -> tuple[int, str]:
    """Exit code and everything printed of `python -m yt8m COMMAND` where standard output and error are a terminal."""
    ours, theirs = pty.openpty()
    unset = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")}
    given = {**unset, "TERM": "xterm", "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen(
        [sys.executable, "-m", "yt8m", *command], cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, env=given
    )
    os.close(theirs)
    text = read_terminal(ours)
    os.close(ours)
    return process.wait(), text.decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(tmp_path / "tiny.onnx", inputs=INPUTS, labels=LABELS)
    write_shards(tmp_path / "shards", [40])
    return tmp_path


COMMANDS = {
    "help": ["--help"],
    "a wrong command": ["scroe"],
    "score": ["score", "shards", "-o", "preds[red].csv", "--model", "tiny.onnx"],
    "a shard that is not there": ["score", "absent\x1b[2J[bold]", "-o", "preds.csv"],
    "inspect": ["inspect", "tiny.onnx"],
    "doctor": ["doctor"],
    "settings": ["train", "--list-settings"],
}


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"NO_COLOR": "1"}], ids=["dumb", "no color"])
@pytest.mark.parametrize("command", COMMANDS)
def test_no_escape_codes(folder: Path, command: str, environment: dict[str, str]) -> None:
    if command == "settings":
        pytest.importorskip("torch", reason="torch is not installed, and training needs it")
    code, text = on_a_terminal(folder, COMMANDS[command], COLUMNS="60", **environment)
    assert "\x1b" not in text
    assert code in (0, 2, 3, 7)
    assert "Traceback" not in text
    if command == "score":
        assert "preds[red].csv" in text
    if command.startswith("a shard"):
        assert "absent\\x1b[2J[bold]: no file matches" in text


def test_a_terminal_that_has_them_gets_some(folder: Path) -> None:
    code, text = on_a_terminal(folder, COMMANDS["score"])
    assert code == 0
    assert "\x1b" in text


def test_score_and_merge_show_a_bar(folder: Path) -> None:
    score = ["score", "shards", "-o", "preds.csv", "--model", "tiny.onnx", "--part", "1/1"]
    for command in (score, ["merge", "preds.csv.part-1-of-1", "-o", "preds.csv"]):
        code, text = on_a_terminal(folder, command)
        assert code == 0
        assert "videos/s" in text
        assert "shard 1/1" in text
