"""Kill workers, nodes and the command of `score --ray` at random moments, and compare the bytes with one process's.

    python -m tests.scorer.job.cluster_crash --kills 50
    python -m tests.scorer.job.cluster_crash --kills 50 --parts 12

Three nodes of this machine, of a core each, score small shards, of which one has a bad record, with a model that takes
its time. A killed node is a raylet and all its workers, killed at once; another joins in its place. A command that was
killed is resumed. After a few kills a job is left to end and compared. With --parts the workers write part files, which
are merged first.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import onnx_models, shards
from tests.scorer.fakes import INPUTS, LABELS, files_of, write_shards
from tests.scorer.job.slow_score import SECONDS

ROOT = Path(__file__).parents[3]
KINDS = {"worker": 0.5, "node": 0.25, "command": 0.25}
MOST_A_JOB = 6
QUARANTINED = 10
_NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


class Nodes:
    """A cluster on this machine: `ray.cluster_utils.Cluster`, whose nodes can be killed as a machine dies."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, **more: Any) -> None:
        self.cluster.add_node(**{**_NODE, **more})

    def working(self) -> list[int]:
        """The workers that run parts now."""
        return [pid for node in self._all() for pid in _workers(_raylet(node))]

    def kill_worker(self, chance: random.Random) -> bool:
        """Kill one that runs a part; False where none does."""
        at_work = self.working()
        return bool(at_work) and _kill(chance.choice(at_work))

    def kill_node(self, chance: random.Random) -> bool:
        """Kill one that runs a part, and not the head; False where none does."""
        at_work = [node for node in self.cluster.worker_nodes if _workers(_raylet(node))]
        if not at_work:
            return False
        node = chance.choice(at_work)
        raylet = _raylet(node)
        for pid in [raylet, *_children(raylet)]:
            _kill(pid)
        self.cluster.remove_node(node, allow_graceful=False)
        return True

    def _all(self) -> list[Any]:
        return [self.cluster.head_node, *self.cluster.worker_nodes]


@contextmanager
def nodes(count: int = 3, **more: Any) -> Iterator[Nodes]:
    """`count` nodes, with what `more` says of each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["PYTHONPATH"] = str(ROOT)
    from ray.cluster_utils import Cluster

    made = Nodes(Cluster(initialize_head=True, head_node_args={**_NODE, **more, "include_dashboard": False}))
    try:
        for _ in range(count - 1):
            made.add(**more)
        yield made
    finally:
        made.cluster.shutdown()


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            with suppress(OSError, IndexError):
                if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                    found.append(int(path.name))
    return found


def _workers(raylet: int) -> list[int]:
    return [pid for pid in _children(raylet) if _name(pid).startswith(b"ray::") and b"run_task" in _name(pid)]


def _name(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _kill(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
        return True
    return False


@dataclass
class ClusterTally:
    """What happened: kills by what was killed, nodes that joined, jobs finished and compared."""

    kills: Counter[str] = field(default_factory=Counter)
    added: int = 0
    compared: int = 0

    def __str__(self) -> str:
        kills = ", ".join(f"{count} {what}s" for what, count in sorted(self.kills.items()))
        return (
            f"{self.kills.total()} kills ({kills}), {self.added} nodes added, "
            f"{self.compared} finished jobs compared, 0 bytes differ"
        )


def prepare(folder: Path, counts: list[int]) -> None:
    """Shards with a bad record, models/default.onnx, and whole/preds.csv as one process writes it."""
    write_shards(folder / "shards", counts)
    shards.damage_payload(str(folder / "shards" / "b.tfrecord"), 3)
    (folder / "models").mkdir()
    onnx_models.save_model(folder / "models" / "default.onnx", inputs=INPUTS, labels=LABELS)
    (folder / "whole").mkdir()
    plain = ["-m", "yt8m", "score", "shards", "-o", "whole/preds.csv", "--on-error", "skip", "--quiet"]
    assert subprocess.run([sys.executable, *plain], cwd=folder).returncode == QUARANTINED


def start(
    folder: Path, address: str, *more: str, seconds: float = 0.0, before: Callable[[], None] | None = None
) -> subprocess.Popen[str]:
    """`score --ray` of the shards in `folder`, each batch of 16 videos taking `seconds`; `before` runs in it first."""
    job = ["shards", "-o", "preds.csv", "--ray", address, "--device", "cpu", "--batch-size", "16", "--threads", "1"]
    command = [sys.executable, "-m", "tests.scorer.job.slow_score", *job, *more]
    environment = {**os.environ, SECONDS: str(seconds), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=before)


def same(folder: Path) -> bool:
    return files_of(folder / "preds.csv") == files_of(folder / "whole" / "preds.csv")


def crash(folder: Path, kills: int, seed: int = 0, parts: int | None = None) -> ClusterTally:
    """Kill, and resume where the command was killed, until `kills` kills hit and the job in hand is compared.

    parts: how many part files the workers write, where they do.

    Raises AssertionError when a byte differs or a command ends in an unexpected way.
    """
    chance, tally = random.Random(seed), ClusterTally()
    prepare(folder, [chance.randrange(50, 400) for _ in range(24)])
    more = ["--ray-parts", str(parts)] if parts else []
    with nodes() as cluster:
        while tally.kills.total() < kills:
            _one_job(folder, cluster, kills, more, tally, chance)
            if parts:
                _merge(folder)
            assert same(folder), "bytes differ"
            tally.compared += 1
            for path in folder.glob("preds.csv*"):
                path.unlink()
    return tally


def _merge(folder: Path) -> None:
    """What becomes of the part files, which are removed."""
    command = [sys.executable, "-m", "yt8m", "merge", "preds.csv.part-*", "-o", "preds.csv", "--quiet"]
    assert subprocess.run(command, cwd=folder).returncode == QUARANTINED
    for path in [*folder.glob("preds.csv.part-*"), *folder.glob(".preds.csv.part-*")]:
        path.unlink()


def _one_job(
    folder: Path, cluster: Nodes, kills: int, more: list[str], tally: ClusterTally, chance: random.Random
) -> None:
    """Begin a job, kill and resume it until it ends."""
    kills = min(kills, tally.kills.total() + chance.randint(1, MOST_A_JOB))
    while True:
        process = start(folder, cluster.address, "--on-error", "skip", "--resume", "--quiet", *more, seconds=0.02)
        code = _attacked(process, cluster, kills, tally, chance)
        _, said = process.communicate()
        if code == QUARANTINED:
            return
        assert code == -signal.SIGKILL, (code, said)


def _attacked(
    process: subprocess.Popen[str],
    cluster: Nodes,
    kills: int,
    tally: ClusterTally,
    chance: random.Random,
) -> int:
    """The exit code of `process`, killed or not while what works for it is."""
    while process.poll() is None and tally.kills.total() < kills:
        if not cluster.working():
            time.sleep(0.01)
            continue
        time.sleep(chance.uniform(0, 0.5))
        kind = chance.choices([*KINDS], [*KINDS.values()])[0]
        if kind == "worker":
            tally.kills[kind] += cluster.kill_worker(chance)
        elif kind == "command":
            process.kill()
            tally.kills[kind] += process.wait() == -signal.SIGKILL
        elif cluster.kill_node(chance):
            tally.kills[kind] += 1
            time.sleep(chance.uniform(0, 1))
            cluster.add()
            tally.added += 1
    return process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--parts", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(crash(Path(folder), options.kills, options.seed, options.parts))


if __name__ == "__main__":
    main()
