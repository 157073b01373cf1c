"""One process, one huge shard, flat memory and open files.

    python -m tests.soak --gigabytes 10 '../shared/data/yt8m/*.tfrecord'

Writes one shard of that size by repeating the records given (without any: records of its own), scores it with a small
model, and watches the process's resident memory and open files. Fails where the second half of the run needs more
than the first.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import onnx_models, shards

TOLERANCE = 10 << 20  # bytes: 8 MB to count duplicates at the end, and what comes and goes
END_FILES = 1  # notes that are read when all rows are there


@dataclass(frozen=True)
class Sample:
    """One look at a process: resident bytes, open files."""

    resident: int
    files: int


@dataclass(frozen=True)
class Soak:
    """How a run went: records, seconds, and the highest of each half."""

    records: int
    seconds: float
    first: Sample
    second: Sample

    def __str__(self) -> str:
        return (
            f"{self.records:,} records in {self.seconds:.0f} s; resident at most {self.first.resident / 1e6:.1f} MB "
            f"in the first half and {self.second.resident / 1e6:.1f} MB in the second; "
            f"open files {self.first.files} and {self.second.files}"
        )

    @property
    def flat(self) -> bool:
        grown = self.second.resident - self.first.resident
        return grown <= TOLERANCE and self.second.files <= self.first.files + END_FILES


def soak(records: bytes, copies: int, folder: Path, *options: str) -> Soak:
    """Score `copies` times the framed `records` in one shard and watch."""
    shard, output = folder / "soak.tfrecord", folder / "preds.csv"
    with shard.open("wb") as file:
        for _ in range(copies):
            file.write(records)
    model = onnx_models.save_model(folder / "tiny.onnx", labels=16)
    began = time.monotonic()
    command = [sys.executable, "-m", "scorer", str(shard), "-o", str(output), "--model", model, "--quiet", *options]
    with subprocess.Popen(command) as process:
        samples = list(_watch(process, output.with_name(f".{output.name}.partial")))
    assert process.returncode == 0
    seconds = time.monotonic() - began
    with output.open("rb") as file:
        rows = sum(1 for _ in file) - 1
    half = len(samples) // 2
    return Soak(rows, seconds, _highest(samples[:half]), _highest(samples[half:]))


def _watch(process: subprocess.Popen[bytes], rows: Path) -> Iterator[Sample]:
    """Samples from the first rows written, behind which nothing belongs to the start, until the process ends."""
    began = False
    while process.poll() is None:
        if not began:
            began = rows.exists() and rows.stat().st_size > 1000
            time.sleep(0.001)
            continue
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{process.pid}/fd"))
        except (FileNotFoundError, ProcessLookupError, IndexError):
            break
        if pages:
            yield Sample(pages * os.sysconf("SC_PAGE_SIZE"), files)
        time.sleep(0.01)


def _highest(samples: Sequence[Sample]) -> Sample:
    return Sample(max(sample.resident for sample in samples), max(sample.files for sample in samples))


def own_records(count: int = 1000) -> bytes:
    """`count` framed records of the real widths."""
    import numpy as np

    random = np.random.default_rng(0)
    payloads = (
        shards.example(
            f"v{row:04}",
            [row % 16],
            {name: random.normal(size=width).astype(np.float32) for name, width in onnx_models.INPUTS.items()},
        )
        for row in range(count)
    )
    return b"".join(map(shards.frame, payloads))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="*")
    parser.add_argument("--gigabytes", type=float, default=10)
    options, passed_on = parser.parse_known_args()
    from scorer.inputs.discover import find_shards

    records = b"".join(Path(shard.address).read_bytes() for shard in find_shards(options.shards)) or own_records()
    with tempfile.TemporaryDirectory() as folder:
        result = soak(records, round(options.gigabytes * 1e9 / len(records)), Path(folder), *passed_on)
    print(result)
    sys.exit(0 if result.flat else "memory or open files grew")


if __name__ == "__main__":
    main()
