"""How fast predictions become bytes on one core: the vectorised formatter, the plain one, and memory's own speed.

    python -m benchmarks.rows

Rounds alternate; printed are medians. The floor is the time to write the same bytes once with memcpy.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from scorer.kernels.numpy_rows import format_rows_plain
from scorer.kernels.packed import PackedStrings
from scorer.outputs.csv_rows import format_rows

GOAL = 1_000_000  # rows/s


def predictions(videos: int, k: int, id_bytes: int) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Random ids, labels that lean to the frequent ones, as real predictions do, and descending scores."""
    random = np.random.default_rng(0)
    letters = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-", np.uint8)
    ids = [letters[row].tobytes() for row in random.integers(0, 64, (videos, id_bytes))]
    labels = (3862 * random.random((videos, k)) ** 2).astype(np.int64)
    return ids, labels, -np.sort(-random.random((videos, k), np.float32), axis=1)


def seconds(work: Callable[[], object]) -> float:
    """Seconds that one core spends on `work`, which other programs on the machine do not change much."""
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=65_536)
    parser.add_argument("--batch", type=int, default=256, help="rows formatted at a time, as the scorer does")
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--id-bytes", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    ids, labels, scores = predictions(options.videos, options.top_k, options.id_bytes)
    joined = [PackedStrings.of(ids[start : start + options.batch]) for start in range(0, options.videos, options.batch)]
    batches = [slice(start, start + options.batch) for start in range(0, options.videos, options.batch)]
    target = bytearray(len(format_rows(PackedStrings.of(ids), labels, scores)))
    source = np.frombuffer(format_rows_plain(ids, labels, scores), np.uint8)
    if source.tobytes() != format_rows(PackedStrings.of(ids), labels, scores):
        raise SystemExit("the two formatters differ")
    candidates: dict[str, Callable[[], object]] = {
        "format_rows": lambda: [
            format_rows(names, labels[part], scores[part]) for names, part in zip(joined, batches, strict=True)
        ],
        "format_rows_plain": lambda: [format_rows_plain(ids[part], labels[part], scores[part]) for part in batches],
        "memcpy of the bytes": lambda: np.copyto(np.frombuffer(target, np.uint8), source),
    }
    times = defaultdict(list)
    for _ in range(options.rounds):
        for name, work in candidates.items():
            times[name].append(seconds(work))
    table = Table(title=f"{options.top_k} pairs a row, {len(source) / options.videos:.0f} bytes; {machine()}")
    for heading in ("", "rows/s", "ns a row", "against plain"):
        table.add_column(heading, justify="right" if heading else "left")
    medians = {name: statistics.median(seen) / options.videos for name, seen in times.items()}
    for name, each in medians.items():
        ratio = medians["format_rows_plain"] / each
        table.add_row(name, f"{1 / each:,.0f}", f"{each * 1e9:,.0f}", f"{ratio:,.1f} times")
    Console().print(table)
    print(f"goal {GOAL:,} rows/s: {'met' if 1 / medians['format_rows'] >= GOAL else 'missed'}")


if __name__ == "__main__":
    main()
