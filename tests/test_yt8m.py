"""The one name for everything: its commands, its help, and our own packages whatever lies in the working folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import yt8m

ROOT = Path(__file__).parents[1]
STRANGERS = ("train", "export", "scorer")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with files that have our packages' names."""
    for name in STRANGERS:
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('a stranger: {name}')\n")
    return tmp_path


def python(folder: Path, *arguments: str, first: str = ".") -> subprocess.CompletedProcess[str]:
    """Python in `folder`, which comes before our own checkout in its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([first, str(ROOT)]), "COLUMNS": "80"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.parametrize("command", yt8m.COMMANDS)
def test_the_commands_are_ours_whatever_lies_in_the_working_folder(folder: Path, command: str) -> None:
    done = python(folder, "-m", "yt8m", command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: yt8m {command}")


def test_so_are_the_processes_of_torchrun(folder: Path) -> None:
    pytest.importorskip("torch", reason="torch is not installed, and training needs it")
    given = ["-P", "-m", "torch.distributed.run", "--nproc-per-node", "1", "-m", "yt8m", "train", "--help"]
    done = python(folder, *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: yt8m train")


@pytest.mark.parametrize("script", ["train", "export", "score"])
def test_so_are_the_console_scripts(folder: Path, script: str) -> None:
    start = f"import sys; sys.argv = [{script!r}, '--help']; from yt8m import {script}; sys.exit({script}())"
    done = python(folder, "-c", start)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: yt8m {script}")


def test_a_whole_job_with_a_decoding_process(folder: Path) -> None:
    """A process of ours starts others, which must find our packages too."""
    samples = str(ROOT / "samples" / "samples0000.tfrecord")
    given = ["score", samples, "-o", "preds.csv", "--threads", "1", "--quiet"]
    done = python(folder, "-m", "yt8m", *given)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "preds.csv").read_text().count("\n") == 65


def test_the_python_interface_is_ours_too(folder: Path) -> None:
    code = "from yt8m import Prediction, Scorer, __version__ as v; print(Scorer.__module__, Prediction.__module__, v)"
    done = python(folder, "-c", code)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"scorer.api scorer.api {yt8m.__version__}\n"


def test_a_stranger_that_was_loaded_before_is_named(tmp_path: Path) -> None:
    (tmp_path / "scorer.py").write_text("")
    done = python(tmp_path, "-c", "import scorer; from yt8m import Scorer")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert "scorer.py is loaded under the name 'scorer', which yt8m-edge needs; rename it" in last


def test_what_is_not_ours_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        yt8m.nonsense  # noqa: B018


@pytest.mark.parametrize("command", [[], ["score"], ["train"], ["export"], ["inspect"], ["doctor"]])
def test_help_fits_into_80_columns(tmp_path: Path, command: list[str]) -> None:
    done = python(tmp_path, "-m", "yt8m", *command, "--help")
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []
    assert done.stdout.startswith(" ".join(["usage: yt8m", *command]))
    assert python(tmp_path, "-m", "yt8m", "help", *command).stdout == done.stdout


@pytest.mark.parametrize("command", [[], ["score"], ["train"], ["export"], ["inspect"], ["doctor"]])
def test_every_command_tells_its_version(tmp_path: Path, command: list[str]) -> None:
    done = python(tmp_path, "-m", "yt8m", *command, "--version")
    assert (done.returncode, done.stdout) == (0, f"yt8m-edge {yt8m.__version__}\n")


@pytest.mark.parametrize("command", ["score", "train", "export", "inspect", "doctor"])
def test_a_wrong_option_is_one_printable_line(tmp_path: Path, command: str) -> None:
    done = python(tmp_path, "-m", "yt8m", command, "--\x1b[2J\n", "x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"usage: yt8m {command}")
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"{command}: ")
    assert "\\x1b[2J\\n" in last or "required" in last
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize(("typed", "meant"), [("scroe", "score"), ("traim", "train"), ("inspct", "inspect")])
def test_a_command_that_is_nearly_right(capsys: pytest.CaptureFixture[str], typed: str, meant: str) -> None:
    assert yt8m.main([typed]) == 2
    assert capsys.readouterr().err == f"yt8m: no command {typed!r}; did you mean {meant}?\n"


def options_of(command: str, folder: Path) -> dict[str, str]:
    """The long options of a command's help, with the value that each takes."""
    lines = python(folder, "-m", "yt8m", command, "--help").stdout.splitlines()
    rows = [line.split() for line in lines if line.startswith("  -")]
    words = [[word.rstrip(",") for word in row] for row in rows]
    return {word: word.lstrip("-") for row in words for word in row if word.startswith("--")}


def test_the_same_thing_has_the_same_option_everywhere(tmp_path: Path) -> None:
    """Options that mean the same are not spelled in two ways."""
    synonyms = [{"output", "out", "outfile"}, {"device", "gpu"}, {"threads", "jobs"}, {"quiet", "silent"}]
    options = {name for command in yt8m.COMMANDS for name in options_of(command, tmp_path).values()}
    for spellings in synonyms:
        assert len(options & spellings) <= 1, f"one of {spellings & options}"
