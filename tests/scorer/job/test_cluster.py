"""`score --ray` on three nodes of this machine, of which nodes, workers and the command itself are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import onnx_models, shards
from tests.scorer.fakes import INPUTS, LABELS, files_of, write_shards

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
COUNTS = [400, 300, 1, 500, 350, 200, 450, 250, 300, 100, 150, 200]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with shards, models/default.onnx, and whole/preds.csv as one process writes it."""
    write_shards(tmp_path / "shards", COUNTS)
    (tmp_path / "models").mkdir()
    onnx_models.save_model(tmp_path / "models" / "default.onnx", inputs=INPUTS, labels=LABELS)
    (tmp_path / "whole").mkdir()
    done = yt8m(tmp_path, "score", "shards", "-o", "whole/preds.csv", "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes of a core each. Workers wait before each part, for kills to meet them."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args=node)
    for _ in range(2):
        made.add_node(num_cpus=1, object_store_memory=100 << 20)
    yield made
    made.shutdown()


def command(cluster: Any, *more: str) -> list[str]:
    address = cluster.address
    plain = ["score", "shards", "-o", "preds.csv", "--on-error", "skip", "--ray", address, "--batch-size", "16"]
    return [sys.executable, "-m", "yt8m", *plain, *more]


def yt8m(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    run = [sys.executable, "-m", "yt8m", *arguments]
    return subprocess.run(run, cwd=folder, capture_output=True, text=True, timeout=200)


def ended(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


def start(folder: Path, run: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(run, cwd=folder, stderr=subprocess.PIPE, text=True)


def workers() -> list[int]:
    """The processes of this user that run parts."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                name = (path / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::") and b"_run" in name:
                found.append(int(path.name))
    return found


def same(folder: Path) -> bool:
    return files_of(folder / "preds.csv") == files_of(folder / "whole" / "preds.csv")


@needs_ray
def test_a_cluster_gives_the_bytes_of_one_process_with_nodes_lost_and_added(folder: Path, cluster: Any) -> None:
    done = subprocess.run(command(cluster), cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert same(folder)
    assert done.stderr.count(" parts") >= 1
    process = start(folder, command(cluster, "--quiet"))
    time.sleep(2.5)
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
    ended(process)
    assert same(folder)


@needs_ray
def test_killed_workers_and_a_killed_command_lose_nothing(folder: Path, cluster: Any) -> None:
    chance, kills = random.Random(0), 0
    process = start(folder, command(cluster, "--quiet"))
    end = time.monotonic() + 30
    while process.poll() is None and kills < 5 and time.monotonic() < end:
        for pid in workers()[:1]:
            os.kill(pid, signal.SIGKILL)
            kills += 1
        time.sleep(chance.uniform(0.02, 0.2))
    ended(process)
    assert same(folder)
    process = start(folder, command(cluster, "--quiet"))
    time.sleep(2.7)
    process.kill()
    process.communicate()
    ended(start(folder, command(cluster, "--quiet", "--resume")))
    assert same(folder)


@needs_ray
def test_bad_shards_and_other_models_are_named(folder: Path, cluster: Any) -> None:
    shards.damage_payload(str(folder / "shards" / "b.tfrecord"), 3)
    assert yt8m(folder, "score", "shards", "-o", "whole/preds.csv", "--on-error", "skip").returncode == 10
    done = subprocess.run(command(cluster), cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 10, done.stderr
    assert same(folder)
    strict = [word for word in command(cluster) if word not in ("--on-error", "skip")]
    done = subprocess.run(strict, cwd=folder, capture_output=True, text=True, timeout=200)
    assert done.returncode == 4 or "fails its CRC32C" in done.stderr, done.stderr
    assert json.loads((folder / "preds.csv.done.json").read_text())["quarantined"] == 1


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_a_line_names_the_extra(folder: Path) -> None:
    done = yt8m(folder, "score", "shards", "-o", "preds.csv", "--ray")
    assert done.returncode == 7
    assert "ray is not installed; pip install" in done.stderr
    assert "[cpu,ray]" in done.stderr
