"""Start-up time, memory and size of the scorer: what a small machine must have.

    python -m benchmarks.startup --data '../shared/data/yt8m/*.tfrecord'

Everything runs in an environment of the scorer alone (the wheel of this tree with the `cpu` extra, no torch), which is
made first. Times are whole processes, from fork to exit, with bytecode cached, medians of `--rounds` that alternate.
Memory is the largest resident set the kernel saw. A memory limit is one on private memory (RLIMIT_DATA).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from scorer.inputs.discover import find_shards

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "scorer" / "bundled" / "default.onnx"
FIRST = "import sys; from scorer import Scorer; print(next(Scorer(sys.argv[1]).predict(sys.argv[2:])).labels[0])"
LIMIT = 512 * 2**20
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
NOT_OURS = ("pip", "setuptools", "pkg_resources")


@dataclass(frozen=True)
class ProcessRun:
    """One process: wall seconds, peak resident bytes, exit code and the end of what it said."""

    seconds: float
    peak: int
    code: int
    said: str


def run(command: list[str], prepare: Callable[[], None] | None = None) -> ProcessRun:
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, cwd="/", env=ENVIRONMENT, preexec_fn=prepare
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        output.seek(0)
        return ProcessRun(seconds, usage.ru_maxrss * 1024, os.waitstatus_to_exitcode(status), output.read()[-300:])


def one_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))


def install(folder: Path) -> tuple[Path, Path]:
    """Build this tree's wheel into `folder` and install it into a new environment there: wheel and interpreter."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [str(environment / "bin" / "pip"), "install", "-q", "--no-compile", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, f"{wheel}[cpu]"], check=True)
    return wheel, environment / "bin" / "python"


def environment_bytes(python: Path) -> int:
    """Bytes of site-packages, less pip and setuptools, which every environment has."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    files = (path for path in packages.rglob("*") if path.is_file() and not path.is_symlink())
    return sum(
        path.stat().st_size for path in files if path.relative_to(packages).parts[0] not in ("pip", "setuptools")
    )


def start_up(python: Path, model: str, shard: str, rounds: int) -> list[tuple[str, str]]:
    """Rows of times: an empty interpreter, help, the two imports, and the first prediction."""
    first = [str(python), "-c", FIRST, model, shard]
    commands = {
        "python -c pass": ([str(python), "-c", "pass"], None),
        "score --help": ([str(python.parent / "score"), "--help"], None),
        "import numpy, onnxruntime": ([str(python), "-c", "import numpy, onnxruntime"], None),
        "first prediction": (first, None),
        "first prediction, one core": (first, one_core),
        "first prediction, 512 MB": (first, limited),
    }
    seen: dict[str, list[ProcessRun]] = {name: [] for name in commands}
    run(first)  # writes the bytecode
    for _ in range(rounds):
        for name, (command, prepare) in commands.items():
            seen[name].append(run(command, prepare))
    imports = statistics.median(r.seconds for r in seen["import numpy, onnxruntime"])
    return [(name, described(runs, imports)) for name, runs in seen.items()]


def described(runs: list[ProcessRun], imports: float) -> str:
    if failed := [r for r in runs if r.code]:
        return f"exit {failed[0].code}: {failed[0].said.strip()}"
    middle, best = statistics.median(r.seconds for r in runs), min(r.seconds for r in runs)
    peak = max(r.peak for r in runs) / 1e6
    return f"{middle * 1000:,.0f} ms (best {best * 1000:,.0f}), {middle / imports:.1f} x the imports, {peak:,.0f} MB"


def whole_jobs(python: Path, model: str, shards: list[str]) -> list[tuple[str, str]]:
    """Rows of whole jobs: as it is, on one core, and under the memory limit."""
    rows = []
    for name, prepare in (("", None), (", one core", one_core), (", 512 MB", limited)):
        with tempfile.TemporaryDirectory() as folder:
            done = run([str(python), "-m", "scorer", *shards, "--model", model, "-o", f"{folder}/preds.csv"], prepare)
        speed = [line for line in done.said.splitlines() if line.startswith("speed")]
        peak = f"{done.peak / 1e6:,.0f} MB, model {Path(model).stat().st_size / 1e6:,.0f} MB"
        rows.append(
            (f"score {len(shards)} shards{name}", f"exit {done.code}, {peak}, {speed[0] if speed else done.said}")
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(BUNDLED))
    parser.add_argument("--data", nargs="+", default=["../shared/data/yt8m/*.tfrecord"], metavar="SHARD")
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    shards, model = [shard.canonical for shard in find_shards(options.data)], os.path.abspath(options.model)
    with tempfile.TemporaryDirectory() as folder:
        wheel, python = install(Path(folder))
        rows = [
            ("wheel", f"{wheel.stat().st_size / 1e6:.1f} MB"),
            *start_up(python, model, shards[0], options.rounds),
            *whole_jobs(python, model, shards),
            ("environment, after all that", f"{environment_bytes(python) / 1e6:.0f} MB"),
        ]
    table = Table("what", "seen", title=f"{Path(model).name}, {machine()}", title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
