"""How many cores a process may use: affinity and control groups of both versions, its ancestors' included."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from scorer.system import cores


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def quota(tmp_path: Path, membership: str) -> float | None:
    (tmp_path / "cgroup").write_text(membership)
    return cores.cpu_quota(tmp_path / "cgroup", tmp_path / "fs")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("150000 100000\n", 1.5), ("max 100000\n", None), ("", None), ("nonsense", None), ("100000 0\n", None)],
)
def test_version_2(tmp_path: Path, text: str, expected: float | None) -> None:
    group(tmp_path / "fs" / "user" / "job", cpu__max=text)
    assert quota(tmp_path, "0::/user/job\n") == expected


def test_version_2_in_a_container_that_sees_itself_as_the_root(tmp_path: Path) -> None:
    group(tmp_path / "fs", cpu__max="50000 100000\n")
    assert quota(tmp_path, "0::/\n") == 0.5


def test_the_tightest_ancestor_counts(tmp_path: Path) -> None:
    group(tmp_path / "fs" / "a", cpu__max="100000 100000")
    group(tmp_path / "fs" / "a" / "b", cpu__max="400000 100000")
    assert quota(tmp_path, "0::/a/b\n") == 1


@pytest.mark.parametrize(("us", "expected"), [("250000", 2.5), ("-1", None)])
def test_version_1(tmp_path: Path, us: str, expected: float | None) -> None:
    group(tmp_path / "fs" / "cpu,cpuacct" / "job", cpu__cfs_quota_us=us, cpu__cfs_period_us="100000")
    assert quota(tmp_path, "7:blkio:/other\n4:cpu,cpuacct:/job\n0::/\n") == expected


def test_no_control_groups(tmp_path: Path) -> None:
    assert cores.cpu_quota(tmp_path / "absent", tmp_path / "fs") is None


@pytest.mark.parametrize(
    ("affinity", "limit", "expected"), [(8, None, 8), (8, 1.5, 2), (8, 0.2, 1), (2, 16.0, 2), (1, None, 1)]
)
def test_affinity_and_quota_together(
    monkeypatch: pytest.MonkeyPatch, affinity: int, limit: float | None, expected: int
) -> None:
    monkeypatch.setattr(cores, "affinity", lambda: affinity)
    monkeypatch.setattr(cores, "cpu_quota", lambda: limit)
    assert cores.usable_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity mask")
def test_affinity_is_respected() -> None:
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert cores.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not show a process's threads")
@pytest.mark.skipif(cores.affinity() < 2, reason="there is one core only")
def test_unbound_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    before, done = os.sched_getaffinity(0), threading.Event()
    thread = threading.Thread(target=done.wait)
    try:
        os.sched_setaffinity(0, {min(before)})
        with cores.unbound():
            thread.start()
            assert os.sched_getaffinity(0) >= before
        assert os.sched_getaffinity(0) == {min(before)}
        assert os.sched_getaffinity(thread.native_id or 0) == {min(before)}
        monkeypatch.setattr(os, "sched_setaffinity", refused)
        with cores.unbound():
            assert os.sched_getaffinity(0) == {min(before)}
    finally:
        done.set()
        monkeypatch.undo()
        os.sched_setaffinity(0, before)
        thread.join()


def refused(thread: int, cores: set[int]) -> None:
    raise PermissionError


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="this system does not show a process's threads")
def test_a_process_bound_to_one_core_stays_there() -> None:
    script = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import numpy\n"
        "from scorer.model.runtime import import_runtime; import_runtime()\n"
        "assert all(len(os.sched_getaffinity(int(task))) == 1 for task in os.listdir('/proc/self/task'))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
