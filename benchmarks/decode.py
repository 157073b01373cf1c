"""Records a second on one core: this project's reader, protobuf, the `tfrecord` loader and tf.data; and the floor.

    python -m benchmarks.decode --data '../shared/data/yt8m/*.tfrecord'

Everyone makes float32 batches of 1,024 records of the same shards, in a process of its own that is pinned to one core,
the page cache warm. Rounds alternate, so that a slow minute hits everyone; the best pass counts. Peers run in the
environments of benchmarks/environments.py, or with `--python tfdata=/path/to/python` in a given one; `--peers` without
a name leaves them out. The floor is what the memory allows: each record read once, its CRC taken, its numbers written
once. The last table says where this project's time goes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from crc32c import crc32c
from rich.console import Console
from rich.table import Table

from benchmarks import environments
from benchmarks.machine import machine
from scorer.inputs import batching, example, layouts, tfrecord
from scorer.inputs.discover import find_shards
from scorer.inputs.records import Schema

HERE = Path(__file__).parent
NAMES = {
    "ours": "yt8m-edge, both CRCs",
    "numpy": "yt8m-edge without a C compiler, both CRCs",
    "protobuf": "protobuf to NumPy, both CRCs",
    "tfrecord": "tfrecord's loader, no CRC",
    "tfdata": "tf.data and parse_example, both CRCs",
}
OURS = ("ours", "numpy")
WIDTHS = {"mean_rgb": 1024, "mean_audio": 128}
STAGES: dict[str, tuple[Any, str]] = {
    "read a block": (tfrecord.Shard, "_read"),
    "from the file to the batch, compiled": (batching.Batch, "decode"),
    "framing, both CRCs": (tfrecord.Shard, "_scan"),
    "find the features": (layouts.Layouts, "find"),
    "ids": (example, "_ids"),
    "labels": (example, "_labels"),
    "copy features, check for NaN": (example.Records, "copy"),
}


def decode(python: Path, name: str, core: int, shards: Sequence[str]) -> tuple[int, float]:
    """Records and seconds of the best pass of one program. Raises SystemExit with what it said."""
    command = [str(python), str(HERE / "peers" / f"decode_{name}.py"), "--core", str(core), *shards]
    path = {"PYTHONPATH": str(HERE.parent)} if name in OURS else {}
    process = subprocess.run(command, capture_output=True, text=True, env=os.environ | path)
    if process.returncode:
        raise SystemExit(f"{name} failed:\n{process.stderr}")
    result = json.loads(process.stdout.splitlines()[-1])
    return result["records"], min(result["seconds"])


def best(work: Callable[[], object], repeats: int = 20) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def floor(shards: Sequence[str], records: int) -> dict[str, float]:
    """Seconds a record for: reading the files, CRC32C over them, writing the numbers; none of them decoded."""
    size = sum(os.path.getsize(path) for path in shards)
    buffer = bytearray(1 << 20)
    row_bytes = 4 * sum(WIDTHS.values())
    source, target = np.ones(row_bytes * 222, np.uint8), np.ones(row_bytes * 4096, np.uint8)

    def read() -> None:
        for path in shards:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def write() -> None:
        for start in range(0, len(target) - len(source), len(source)):
            target[start : start + len(source)] = source

    return {
        "read from the page cache": best(read, 5) / records,
        "CRC32C": best(lambda: crc32c(buffer)) / len(buffer) * size / records,
        "write to the batch": best(write) / (len(target) // len(source) * 222),
    }


@contextmanager
def timed(spent: dict[str, float]) -> Iterator[None]:
    """Add up what STAGES take; a stage within another is not counted twice."""
    within: list[float] = []

    def wrap(stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            within.append(0.0)
            began = time.perf_counter()
            result = work(*given)
            taken = time.perf_counter() - began
            spent[stage] += taken - within.pop()
            if within:
                within[-1] += taken
            return result

        return call

    with ExitStack() as stack:
        for stage, (owner, name) in STAGES.items():
            stack.enter_context(mock.patch.object(owner, name, wrap(stage, getattr(owner, name))))
        yield


def one_pass(shards: Sequence[str]) -> int:
    count = 0
    for batch in batching.batches(find_shards(shards), Schema(WIDTHS), 1024):
        count += len(batch)
        batch.release()
    return count


def stages(shards: Sequence[str], passes: int) -> dict[str, float]:
    """Seconds a record of each stage, in the fastest pass."""
    fastest: dict[str, float] = {}
    for _ in range(passes):
        spent: dict[str, float] = defaultdict(float)
        with timed(spent):
            began = time.perf_counter()
            count = one_pass(shards)
            spent["everything else"] = time.perf_counter() - began - sum(spent.values())
        if not fastest or sum(spent.values()) < sum(fastest.values()):
            fastest = {stage: taken / count for stage, taken in spent.items()}
    return dict(sorted(fastest.items(), key=lambda item: -item[1]))


def show(title: str, figures: dict[str, float]) -> None:
    table = Table("", "ns a record", title=title)
    for name, seconds in [*figures.items(), ("together", sum(figures.values()))]:
        table.add_row(name, f"{seconds * 1e9:,.0f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="SHARD", help="shards; * and ? are expanded")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=["protobuf", "tfrecord", "tfdata"],
        choices=[name for name in NAMES if name not in OURS],
    )
    parser.add_argument("--python", nargs="*", default=[], metavar="PEER=PATH", help="interpreters for peers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    options = parser.parse_args()
    shards = [shard.address for shard in find_shards(options.data)]
    given = {name: Path(path) for name, _, path in (text.partition("=") for text in options.python)}
    pythons = dict.fromkeys(OURS, Path(sys.executable))
    for name in options.peers:
        pythons[name] = given.get(name) or environments.peer("tfdata" if name == "tfdata" else "tfrecord")
    rates = dict.fromkeys(pythons, 0.0)
    for _ in range(options.rounds):
        for name, python in pythons.items():
            records, seconds = decode(python, name, options.core, shards)
            rates[name] = max(rates[name], records / seconds)

    print(f"{machine()}; {records:,} records")
    os.sched_setaffinity(0, {options.core})
    table = Table("", "records/s", "ours is", title="Decoding on one core")
    for name, rate in rates.items():
        table.add_row(
            NAMES[name], f"{rate:,.0f}", f"{rates['ours'] / rate:.1f} times as fast" if name != "ours" else ""
        )
    Console().print(table)
    show("The floor", floor(shards, records))
    show("Where the time goes (measuring it costs some)", stages(shards, options.rounds))


if __name__ == "__main__":
    main()
