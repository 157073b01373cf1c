"""What a person at a terminal sees of a run that is stopped."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminals import read_terminal
from tests.train.shards import write

ROOT = Path(__file__).parents[2]
COMMAND = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # or a key would reach nobody
sys.argv[0] = "yt8m train"
from train.cli import main
sys.exit(main(sys.argv[1:]))
"""


def screen(text: str) -> list[str]:
    """The lines that stand on a screen wide enough after `text`, as far as it moves up, returns and erases."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[\??[\d;]*[A-Za-z]|\r\n|\n|\r|[^\x1b\r\n]+", text):
        if token in ("\n", "\r\n"):
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.startswith("\x1b") and token.endswith("A"):
            row = max(0, row - int(token[2:-1] or 1))
        elif token == "\x1b[2K" or token == "\r":
            lines[row] = "" if token == "\x1b[2K" else lines[row]
        elif not token.startswith("\x1b"):
            lines[row] = token if not lines[row] or token.strip() else lines[row]
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.skipif(not hasattr(pty, "openpty"), reason="this system has no pseudo-terminals")
def test_ctrl_c_leaves_one_table_and_the_command_that_resumes(tmp_path: Path) -> None:
    write(tmp_path / "a.tfrecord", 120)
    ours, theirs = pty.openpty()
    given = "--model lstm --data a.tfrecord --inputs mean_rgb:8 mean_audio:4 --epochs 100000 --set batch=16 hidden=8"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    command = [sys.executable, "-c", COMMAND, *given.split()]
    run = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    text = read_terminal(ours, b"3/100000")
    os.write(ours, b"\x03")
    text += read_terminal(ours)
    assert run.wait(timeout=60) == 130
    os.close(ours)
    shown = screen(text.decode())
    assert sum(line.lstrip().startswith("epoch") for line in shown) == 1, shown
    assert "SIGINT" not in text.decode()
    assert shown[-1].startswith(f"train: runs/lstm is saved; resume with: yt8m train {given} --resume"), shown[-1]
    assert text.decode().rstrip().endswith("--resume")
