"""Frame-level shards on one core: this project's reader, TensorFlow's parse_sequence_example and protobuf; the floor.

    python -m benchmarks.frames [--tensorflow /path/to/python]

Everyone averages the frames of the same made-up shards, `--videos` of 120 to 300 frames each, in a process of its own
that is pinned to one core, the page cache warm. Rounds alternate and the best pass counts. TensorFlow runs in the
environment of benchmarks/environments.py, or in a given one. The floor is what the memory allows: each byte read once
from the page cache, its CRC taken and it added up.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import environments
from benchmarks.decode import best, floor
from benchmarks.machine import machine
from scorer.kernels import loops
from tests.shards import sequence_example, write_shard

PEERS = Path(__file__).parent / "peers"
PROGRAMS = {
    "decode_ours": "yt8m-edge, both CRCs",
    "frames_tfdata": "tf.data, parse_sequence_example and NumPy, both CRCs",
    "frames_protobuf": "protobuf and NumPy, both CRCs",
}
OWN = ("decode_ours", "frames_protobuf")


def make(folder: Path, videos: int) -> list[str]:
    """Shards of 100 videos each."""
    random, paths = np.random.default_rng(0), []
    for first in range(0, videos, 100):
        records = []
        for video in range(first, min(first + 100, videos)):
            count = int(random.integers(120, 301))
            frames = {
                name: random.integers(0, 256, (count, width), np.uint8)
                for name, width in (("rgb", 1024), ("audio", 128))
            }
            records.append(sequence_example(f"{video:04x}", [video % 3862], frames))
        paths.append(write_shard(folder / f"{first}.tfrecord", records))
    return paths


def seconds(python: Path, program: str, core: int, shards: Sequence[str]) -> float:
    """Of the best pass of one program. Raises SystemExit with what it said."""
    command = [str(python), str(PEERS / f"{program}.py"), "--core", str(core), *shards]
    path = {"PYTHONPATH": str(PEERS.parents[1])} if program in OWN else {}
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | path)
    if process.returncode:
        raise SystemExit(f"{program} failed:\n{process.stderr}")
    return float(min(json.loads(process.stdout.splitlines()[-1])["seconds"]))


def adding_up(size: int) -> float:
    """Seconds to add up `size` bytes of frames, those of one video again and again."""
    header, width = b"-" * 9, 1024
    frames, sums = memoryview((header + bytes(width)) * 210), np.zeros(width, np.uint32)
    return best(lambda: loops.active.sum_frames(frames, header, 0, 210, sums)) / len(frames) * size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--tensorflow", type=Path, help="an interpreter that has it")
    options = parser.parse_args()
    tensorflow = options.tensorflow or environments.peer("tfdata")
    fastest = dict.fromkeys(PROGRAMS, float("inf"))
    with tempfile.TemporaryDirectory() as folder:
        shards = make(Path(folder), options.videos)
        size = sum(map(os.path.getsize, shards))
        for _ in range(options.rounds):
            for program in PROGRAMS:
                python = Path(sys.executable) if program in OWN else tensorflow
                fastest[program] = min(fastest[program], seconds(python, program, options.core, shards))
        os.sched_setaffinity(0, {options.core})
        parts = floor(shards, options.videos)
    least = options.videos * (parts["read from the page cache"] + parts["CRC32C"]) + adding_up(size)
    table = Table("one core", "GB/s", "videos/s", "yt8m-edge is so many times as fast")
    for program, name in PROGRAMS.items():
        taken = fastest[program]
        times = f"{taken / fastest['decode_ours']:.1f}"
        table.add_row(name, f"{size / taken / 1e9:.2f}", f"{options.videos / taken:,.0f}", times)
    table.add_row("the floor: read, CRC32C, add up", f"{size / least / 1e9:.2f}", f"{options.videos / least:,.0f}", "")
    console = Console()
    console.print(f"{options.videos} videos, {size / 1e6:,.0f} MB; {machine()}")
    console.print(table)


if __name__ == "__main__":
    main()
