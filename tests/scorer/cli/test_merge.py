"""`score --part` and `merge` from their command lines, under the engines of docs/scale.md, and killed."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests import onnx_models, shards
from tests.scorer.fakes import INPUTS, LABELS, files_of, write_shards

DOCS = Path(__file__).parents[3] / "docs" / "scale.md"
KILLS = 4  # of each command


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with shards, models/default.onnx, and whole/preds.csv as one run writes it."""
    paths = write_shards(tmp_path / "shards", [700, 300, 1, 900, 19])
    (tmp_path / "models").mkdir()
    onnx_models.save_model(tmp_path / "models" / "default.onnx", inputs=INPUTS, labels=LABELS)
    (tmp_path / "whole").mkdir()
    assert yt8m(tmp_path, "score", "shards", "-o", "whole/preds.csv").returncode == 0
    assert len(paths) == 5
    return tmp_path


def yt8m(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "yt8m", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def outputs(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(folder / "preds.csv").items() if ".part-" not in name}


def same(folder: Path) -> bool:
    return outputs(folder) == files_of(folder / "whole" / "preds.csv")


def example(title: str) -> str:
    """The block of docs/scale.md whose first comment begins so."""
    (block,) = re.findall(rf"```sh\n(# {title}.*?)```", DOCS.read_text(), re.DOTALL)
    return str(block)


def run_example(folder: Path, title: str) -> None:
    bin_ = folder / "bin"
    bin_.mkdir()
    (bin_ / "yt8m").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m yt8m "$@"\n')
    (bin_ / "yt8m").chmod(0o755)
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(folder)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", example(title)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
def test_gnu_parallel_gives_the_bytes_of_one_run(folder: Path) -> None:
    run_example(folder, "GNU parallel")
    assert same(folder)


def test_a_local_array_gives_the_bytes_of_one_run(folder: Path) -> None:
    run_example(folder, "A local array")
    assert same(folder)


def test_parts_and_merges_killed_at_random_moments_lose_nothing(folder: Path) -> None:
    part_names = ["preds.csv.part-1-of-2", "preds.csv.part-2-of-2"]
    began = time.monotonic()
    yt8m(folder, "score", "shards", "-o", "timed.csv", "--part", "1/2", "--batch-size", "8")
    seconds, chance = time.monotonic() - began, random.Random(1)
    for part, name in enumerate(part_names, start=1):
        survive(
            folder, name, seconds, chance, "score", "shards", "-o", "preds.csv", f"--part={part}/2", "--batch-size=8"
        )
    survive(folder, "preds.csv", seconds, chance, "merge", *part_names, "-o", "preds.csv")
    assert same(folder)


def survive(folder: Path, output: str, seconds: float, chance: random.Random, *command: str) -> None:
    """Kill and resume a command KILLS times, then let it end; one that ends too early starts again from nothing."""
    kills = 0
    while True:
        process = subprocess.Popen(
            [sys.executable, "-m", "yt8m", *command, "--resume"], cwd=folder, stderr=subprocess.PIPE, text=True
        )
        if kills < KILLS:
            with suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0, seconds))
            process.kill()
        errors = process.communicate()[1]
        if process.returncode == -signal.SIGKILL:
            kills += 1
            continue
        assert process.returncode == 0, errors
        if kills == KILLS:
            return
        for path in (folder / output, folder / f"{output}.done.json"):
            path.unlink(missing_ok=True)  # a part has no record beside it


def test_what_is_wrong_is_one_line_and_its_exit_code(folder: Path) -> None:
    def refused(code: int, says: str, *arguments: str) -> None:
        done = yt8m(folder, *arguments)
        assert done.returncode == code, done.stderr
        assert says in done.stderr.splitlines()[-1]

    score = ["score", "shards", "-o", "preds.csv", "--quiet"]
    for part in ("0/2", "3/2", "x", "1", "1/0", "-1/2"):
        refused(2, "is none of 1/N to N/N", *score, f"--part={part}")
    refused(2, "leave --part out", *score, "--part", "1/2", "--ray")
    refused(8, "is no file", "score", "shards", "-o", "-", "--part", "1/2")
    assert yt8m(folder, *score, "--part", "1/3").returncode == 0
    assert yt8m(folder, *score, "--part", "3/3").returncode == 0
    refused(3, "part 2 of 3 is missing; run what is missing, and merge again", "merge", "preds.csv.part-*", "-o", "p")
    refused(3, "No such file", "merge", "absent*", "-o", "p")
    refused(2, "the following arguments are required", "merge", "preds.csv.part-*")
    refused(2, "is no whole number", "merge", "x", "-o", "p", "--max-errors", "-1")
    shards.damage_payload(str(folder / "shards" / "b.tfrecord"), 3)
    done = yt8m(folder, *score, "--part", "2/3", "--on-error", "skip")
    assert done.returncode in (0, 10)
    refused(3, "on_error", "merge", "preds.csv.part-*", "-o", "p")


def test_a_bad_record_in_a_part_makes_both_exit_10(folder: Path) -> None:
    shards.damage_payload(str(folder / "shards" / "b.tfrecord"), 3)
    score = ["score", "shards", "-o", "preds.csv", "--on-error", "skip"]
    codes = [yt8m(folder, *score, "--part", f"{part}/2").returncode for part in (1, 2)]
    assert sorted(codes) == [0, 10]
    done = yt8m(folder, "merge", "preds.csv.part-*", "-o", "preds.csv")
    assert done.returncode == 10
    assert "1,920 read = 1,919 scored + 1 quarantined" in done.stderr
    assert (folder / "preds.csv.quarantine.jsonl").exists()
