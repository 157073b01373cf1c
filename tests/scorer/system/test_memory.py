"""How much memory is left: the machine's, and what control groups of both versions leave of it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from scorer.system.memory import available_memory, is_out_of_memory

GB = 1 << 30


def group(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def left(tmp_path: Path, membership: str = "0::/a/b\n", free: int = 16 * GB) -> float:
    (tmp_path / "cgroup").write_text(membership)
    (tmp_path / "meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable:  {free // 1024} kB\n")
    return available_memory(tmp_path / "cgroup", tmp_path / "fs", tmp_path / "meminfo")


def test_without_groups_it_is_the_machines(tmp_path: Path) -> None:
    assert left(tmp_path) == 16 * GB


def test_without_anything_it_is_not_known(tmp_path: Path) -> None:
    assert available_memory(tmp_path / "a", tmp_path / "b", tmp_path / "c") == math.inf


def test_version_2_counts_what_the_kernel_can_take_back(tmp_path: Path) -> None:
    stat = f"anon 5\ninactive_file {GB}\nactive_file 7"
    group(tmp_path / "fs" / "a" / "b", memory__max=4 * GB, memory__current=3 * GB, memory__stat=stat)
    assert left(tmp_path) == 2 * GB


def test_an_ancestor_limits_too(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "a", memory__max=2 * GB, memory__current=GB)
    group(tmp_path / "fs" / "a" / "b", memory__max="max", memory__current=GB)
    assert left(tmp_path) == GB


def test_a_container_that_sees_itself_as_the_root(tmp_path: Path) -> None:
    group(tmp_path / "fs", memory__max=2 * GB, memory__current=5 * GB)
    assert left(tmp_path, "0::/\n") == 0


@pytest.mark.parametrize("membership", ["9:memory:/job\n0::/\n", "4:cpu,cpuacct:/x\n9:memory:/job\n"])
def test_version_1(tmp_path: Path, membership: str) -> None:
    stat = f"inactive_file 1\ntotal_inactive_file {GB}"
    files = {"memory__limit_in_bytes": 8 * GB, "memory__usage_in_bytes": 2 * GB, "memory__stat": stat}
    group(tmp_path / "fs" / "memory" / "job", **files)
    group(tmp_path / "fs" / "memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=9 * GB)
    assert left(tmp_path, membership) == 7 * GB


def test_no_limit_and_nonsense(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "a" / "b", memory__max="max", memory__current="much")
    assert left(tmp_path) == 16 * GB


def test_what_says_that_memory_ran_out() -> None:
    said = ["CUDA out of memory. Tried to allocate 2 GiB.", "DefaultCPUAllocator: can't allocate memory: you tried"]
    said.append("unable to mmap 149746304 bytes from file <x>: Cannot allocate memory (12)")
    assert all(is_out_of_memory(RuntimeError(text)) for text in said)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
