"""What each extra brings: packages, megabytes, and time at the start.

    python -m benchmarks.extras [--extras gzip remote parquet ...] [--rounds 9]

Each is an environment of its own with the wheel of this tree and `cpu`, and that extra beside it. Start-up is that of
`score --help` and of a first prediction with the bundled model, medians of rounds that alternate between environments.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.startup import BUNDLED, FIRST, NOT_OURS, ROOT, environment_bytes, install, run

EXTRAS = ("gzip", "remote", "parquet", "ray")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--extras", nargs="+", default=EXTRAS)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel, base = install(Path(folder))
        pythons = {"": base, **{extra: _with_extra(wheel, extra, Path(folder)) for extra in options.extras}}
        sizes = {extra: (_packages(python), environment_bytes(python) / 1e6) for extra, python in pythons.items()}
        seconds = _start_up(pythons, options.rounds)
    table = Table("extra", "packages", "MB", "more", "score --help", "first prediction", title=machine())
    for extra, (packages, size) in sizes.items():
        more = size - sizes[""][1]
        times = (f"{statistics.median(times) * 1e3:.0f} ms" for times in seconds[extra])
        table.add_row(extra or "cpu alone", str(len(packages)), f"{size:.0f}", f"{more:.0f}", *times)
    Console(width=100).print(table)
    for extra in options.extras:
        print(f"{extra}: {', '.join(sorted(sizes[extra][0] - sizes[''][0]))}")


def _with_extra(wheel: Path, extra: str, folder: Path) -> Path:
    place = folder / extra
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    pip = [str(place / "bin" / "pip"), "install", "-q", "--no-compile", "-c", str(ROOT / "constraints.txt")]
    subprocess.run([*pip, f"{wheel}[cpu,{extra}]"], check=True)
    return place / "bin" / "python"


def _packages(python: Path) -> set[str]:
    command = [str(python), "-m", "pip", "list", "--format", "freeze"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {line.partition("==")[0] for line in listed} - {*NOT_OURS}


def _start_up(pythons: dict[str, Path], rounds: int) -> dict[str, tuple[list[float], list[float]]]:
    """Seconds of each round by environment: help, and the first prediction."""
    shard = str(next((ROOT / "samples").glob("*.tfrecord")))
    seconds: dict[str, tuple[list[float], list[float]]] = {extra: ([], []) for extra in pythons}
    for number in range(rounds + 1):  # the first writes the bytecode
        for extra, python in pythons.items():
            for times, command in zip(
                seconds[extra],
                ([str(python.parent / "score"), "--help"], [str(python), "-c", FIRST, str(BUNDLED), shard]),
                strict=True,
            ):
                done = run(command)
                assert done.code == 0, done.said
                times.extend([done.seconds] if number else [])
    return seconds


if __name__ == "__main__":
    main()
