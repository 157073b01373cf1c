"""The picture of a run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DRAW = """
from pathlib import Path
from train.curves import draw
record = {"epoch": 1.0, "loss": 2.0, "train_loss": 2.0, "valid_loss": 2.1, "MAP@10": 0.5, "train_MAP@10": 0.6}
draw(Path("curves.png"), "lstm", [record, record | {"epoch": 2.0}])
"""


@pytest.mark.parametrize("kind", ["settings", "bytes", "pipe"])
def test_a_matplotlibrc_of_the_working_folder_is_not_read(kind: str, tmp_path: Path) -> None:
    """Anyone may have left it there: with text.usetex it has LaTeX run."""
    if kind == "pipe":
        os.mkfifo(tmp_path / "matplotlibrc")
    else:
        (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: True\n" if kind == "settings" else b"\xff\xfe\n")
    (tmp_path / "latex").write_text("#!/bin/sh\ntouch latex-ran\n")
    (tmp_path / "latex").chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-c", DRAW], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "latex-ran").exists()
