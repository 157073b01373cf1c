"""What `yt8m merge` takes for so many rows: time and memory of its process, and the files that it works with.

    python -m benchmarks.merge --rows 1000000 10000000 30000000 --folder /tmp/merge

Parts of random predictions, with true labels or without, stand for scored ones; a million rows take 0.15 GB for the
parts, and 0.25 GB for the output with its work files. CPU seconds are printed, which other programs on the machine do
not change much; the peak of memory is the process's own. State is what stands beside the rows while they are made:
a key for each id, a metric record for each video, the journal.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from scorer.inputs.position import Position
from scorer.inputs.source import FileStat
from scorer.job.part import job_digest
from scorer.job.part_file import PartFacts, open_part_file, part_path
from scorer.job.record import Options, ShardRecord
from scorer.job.writer import JobWriter
from scorer.kernels import loops
from scorer.kernels.packed import PackedStrings
from scorer.outputs.sink import Chunk, ShardId
from scorer.system.packages import version
from scorer.system.signals import StopRequest

K, LABELS, CHUNK = 10, 3862, 4096
_LETTERS = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-", np.uint8)


@dataclass(frozen=True)
class Measured:
    """Of one merge. parts, output, state: bytes. memory: bytes at the peak. cpu, seconds: of its process."""

    rows: int
    parts: int
    output: int
    state: int
    memory: int
    cpu: float
    seconds: float


def write_part(output: str, index: int, count: int, rows: int, *, labelled: bool = True) -> str:
    """Part `index` of `count`, of one shard each: `rows` random predictions for ids that differ. Returns its path."""
    shards = [ShardId(f"/shards/{shard:06}.tfrecord", FileStat(rows * 4700, shard + 1)) for shard in range(count)]
    options = Options("0" * 64, "CPUExecutionProvider", "random", K, "fail")
    job = job_digest(shard.canonical for shard in shards)
    shard = shards[index]
    facts = PartFacts(index, count, job, version(), options, (shard.canonical,))
    path = part_path(output, index, count)
    with open_part_file(path, facts, {shard.canonical: shard.stat}, "restart") as sink:
        writer = JobWriter(sink, (shard,), options)
        writer.write(_chunks(index * rows, rows, labelled), StopRequest(), lambda progress: None, 1.0)
        records = [ShardRecord(shard.canonical, shard.stat, rows).to_json()]
        sink.complete({"shards": records, "scored": rows})
    return path


def _chunks(first: int, rows: int, labelled: bool) -> Generator[Chunk]:
    random = np.random.default_rng(first)
    labels = (LABELS * random.random((CHUNK, K)) ** 2).astype(np.int64)  # leaning to the frequent ones
    scores = -np.sort(-random.random((CHUNK, K), np.float32), axis=1)
    truth = PackedStrings.of([b"".join(map(_varint, row)) for row in labels[:, :3].tolist()])
    metrics = loops.active.metric_records(labels, scores, truth) if labelled else b""
    for start in range(0, rows, CHUNK):
        n = min(CHUNK, rows - start)
        end = Position(1, 0, 0) if start + n == rows else Position(0, start + n, (start + n) * 4700)
        ids = _ids(first + start, n)
        kept = metrics[: len(metrics) // CHUNK * n]
        yield Chunk(ids, labels[:n], scores[:n], kept, (), end, [(0, rows)] if end.shard else [])


def _varint(label: int) -> bytes:
    return bytes([label & 127 | 128, label >> 7])  # of up to 14 bits


def _ids(first: int, count: int) -> PackedStrings:
    """Of five letters, as YouTube-8M's have four."""
    numbers = np.arange(first, first + count)[:, None] >> (6 * np.arange(5))
    return PackedStrings(_LETTERS[numbers & 63].tobytes(), np.full(count, 5, np.int64))


def measure(folder: Path, rows: int, parts: int, *, labelled: bool = True) -> Measured:
    """Make the parts, merge them in a process of its own, and remove all of it."""
    output = folder / "preds.csv"
    paths = [write_part(str(output), index, parts, rows // parts, labelled=labelled) for index in range(parts)]
    size = sum(os.path.getsize(path) for path in paths)
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "yt8m", "merge", *paths, "-o", str(output), "--quiet"])
    state, usage = 0, None
    while usage is None:
        state = max(state, _state(output))
        ended, status, found = os.wait4(process.pid, os.WNOHANG)
        usage = found if ended else None
        time.sleep(0.02)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"merge failed with {process.returncode}")
    made = Measured(
        rows // parts * parts,
        size,
        output.stat().st_size,
        state,
        usage.ru_maxrss << 10,
        usage.ru_utime + usage.ru_stime,
        seconds,
    )
    for path in folder.glob("preds.csv*"):
        path.unlink()
    return made


def _state(output: Path) -> int:
    """Bytes of all the work files of `output`, its rows left out."""
    total = 0
    for path in output.parent.glob(f".{output.name}.*"):
        if path.suffix != ".partial":
            total += path.stat().st_size if path.exists() else 0
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 30_000_000])
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--bare", action="store_true", help="without true labels, and so without metrics")
    parser.add_argument("--folder", type=Path, help="with room for it [a temporary one]")
    options = parser.parse_args()
    table = Table(title=f"merge of {options.parts} parts; {machine()}", title_justify="left")
    for heading in ("rows", "parts MB", "output MB", "state B a row", "peak MB", "CPU s", "us a row", "s"):
        table.add_column(heading, justify="right")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for rows in options.rows:
            seen = measure(Path(folder), rows, options.parts, labelled=not options.bare)
            table.add_row(
                f"{seen.rows:,}",
                f"{seen.parts / 1e6:,.0f}",
                f"{seen.output / 1e6:,.0f}",
                f"{seen.state / seen.rows:.1f}",
                f"{seen.memory / 1e6:,.0f}",
                f"{seen.cpu:.1f}",
                f"{seen.cpu / seen.rows * 1e6:.2f}",
                f"{seen.seconds:.1f}",
            )
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
