"""The README's commands work: the first in a fresh clone with a new environment, the rest in one clone, in order.

Blocks marked `sh` and `python` are run; what needs real shards or minutes stands in blocks marked `text`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
SHELL = [text for kind, text in BLOCKS if kind == "sh"]
PYTHON = [text for kind, text in BLOCKS if kind == "python"]
SCORER_ENVIRONMENT_BYTES = 170_000_000
NOT_OURS = ("pip", "setuptools", "pkg_resources")  # in every environment


def shell(command: str, folder: Path) -> str:
    """Run a block in `folder` with this interpreter's commands first on the path; returns what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "COLUMNS": "120"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A fresh clone of the last commit."""
    if not (ROOT / ".git").exists():
        pytest.skip("the tree is no git checkout, so it cannot be cloned")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    return tmp_path / "clone"


def skip_without_index(folder: Path) -> None:
    """Skip where no package index answers; never in CI, where this test must run."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-cache-dir", "--retries", "0"]
    done = subprocess.run([*command, "-d", str(folder), "mdurl==0.1.2"], capture_output=True, text=True)
    if done.returncode and "CI" not in os.environ:
        pytest.skip("no package index can be reached, so nothing can be installed")


def check_predictions(path: Path, videos: int) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "VideoId,LabelConfidencePairs"
    assert len(lines) == 1 + videos
    assert all(re.fullmatch(r"\S{4},(\d+ [01]\.\d{6} ?){10}", line) for line in lines[1:])


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 150


def test_first_command_scores_from_a_fresh_clone(clone: Path, tmp_path: Path) -> None:
    skip_without_index(tmp_path / "index")
    assert "\n" not in SHELL[0].strip(), "one line to paste"
    shell(SHELL[0], clone)
    check_predictions(clone / "preds.csv", videos=192)
    (packages,) = (clone / ".venv").glob("lib/python*/site-packages")
    assert not (packages / "torch").exists()
    ours = [path for path in packages.rglob("*") if path.relative_to(packages).parts[0] not in NOT_OURS]
    assert sum(path.stat().st_size for path in ours if path.is_file()) < SCORER_ENVIRONMENT_BYTES


def test_second_command_runs_the_tests() -> None:
    """It is what runs these tests in CI, so that here only its form is held."""
    (line,) = SHELL[1].splitlines()
    assert re.fullmatch(r"python3 -m venv \S+ && \S+/pip install -q -c constraints.txt -e \S+ && \S+ -m pytest", line)
    assert SHELL[1] in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_rest_works_in_order(clone: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed, and training needs it")
    for block in SHELL[2:]:
        shell(block, clone)
    for block in PYTHON:
        (clone / "block.py").write_text(block)
        shell("python block.py", clone)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", README)
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
