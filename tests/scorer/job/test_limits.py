"""A full disk, a file size limit and a memory limit: one line, and what was done is resumed once there is room."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.scorer.fakes import files_of
from tests.scorer.job.committing import committing


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return committing(tmp_path_factory.mktemp("limits"), [1000, 900], 50)


def score(command: list[str], output: Path, *options: str, limit: Callable[[], None] | None = None) -> tuple[int, str]:
    given = [*command, "-o", str(output), "--quiet", *options]
    result = subprocess.run(given, env={"PATH": ""}, stderr=subprocess.PIPE, text=True, preexec_fn=limit)
    return result.returncode, result.stderr


@pytest.fixture
def whole(command: list[str], tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "whole").mkdir()
    assert score(command, tmp_path / "whole" / "preds.csv") == (0, "")
    return files_of(tmp_path / "whole" / "preds.csv")


def test_a_file_size_limit(command: list[str], whole: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "preds.csv"
    code, says = score(
        command, output, limit=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    )
    assert code == 8
    assert says.count("\n") == 1
    assert "cannot be written: File too large; " in says
    assert not output.exists()
    assert score(command, output, "--resume") == (0, "")
    assert files_of(output) == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 160 KB; the rows need 250."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(command: list[str], whole: dict[str, bytes], small_disk: Path) -> None:
    output = small_disk / "preds.csv"
    code, says = score(command, output)
    assert code == 8
    assert says.count("\n") == 1
    assert "cannot be written: No space left on device; " in says
    assert not output.exists()
    subprocess.run(["mount", "-o", "remount,size=2m", str(small_disk)], check=True)
    assert score(command, output, "--resume") == (0, "")
    assert files_of(output) == whole


def test_a_read_only_file_system(command: list[str], small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, says = score(command, small_disk / "preds.csv")
    assert code == 8
    assert says.count("\n") == 1
    assert "Read-only file system" in says


def test_a_memory_limit(command: list[str], whole: dict[str, bytes], tmp_path: Path) -> None:
    """Room for the process but not for a batch of a million videos."""
    output = tmp_path / "preds.csv"
    enormous = [*command, "--batch-size", "300000000"]
    limit = 4 << 30
    code, says = score(enormous, output, limit=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
    assert code == 7
    assert says == "score: out of memory; use a smaller --batch-size or fewer --threads\n"
    assert files_of(output) == {}
    assert score(command, output) == (0, "")
    assert files_of(output) == whole


HOLD = """
import os, sys
from pathlib import Path
from scorer.system.memory import give_memory_back
def held(): return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20
if sys.argv[1:]: give_memory_back()
del (once := [b"x" * (24 << 20)])[:]
before = held()
pairs = [(b"x" * (8 << 20), b"x" * 100_000) for _ in range(8)]
small = [pair[1] for pair in pairs]
del pairs
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps freed memory as it likes")
@pytest.mark.parametrize(("arguments", "kept"), [([], True), (["give it back"], False)])
def test_freed_memory_goes_back_to_the_system(arguments: list[str], kept: bool) -> None:
    """Of 64 MB in large blocks between small ones, as ONNX Runtime frees weights."""
    command = [sys.executable, "-c", HOLD, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={"PATH": ""})
    assert (int(done.stdout) > 32) == kept
