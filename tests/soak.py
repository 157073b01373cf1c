"""One process, one huge shard, flat memory and open files.

    python -m tests.soak --gigabytes 10 '../shared/data/yt8m/*.tfrecord'
    python -m tests.soak --gigabytes 1 --form parquet --group 10000

Writes one shard of that size by repeating the records given (without any: records of its own), scores it with a small
model, and watches the process's resident memory and open files. Fails where the second half of the run needs more
than the first. A Parquet or Arrow file has made-up records, in row groups or record batches of --group of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

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


def soak(shard: Path, folder: Path, *options: str) -> Soak:
    """Score a shard and watch."""
    output = folder / "preds.csv"
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


def write_records(path: Path, records: bytes, copies: int) -> Path:
    """A shard of `copies` times the framed `records`."""
    with path.open("wb") as file:
        for _ in range(copies):
            file.write(records)
    return path


def write_columns(path: Path, groups: int, group: int) -> Path:
    """A shard of `groups` row groups or record batches of `group` rows of the real widths: .parquet or .arrow."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    random, schema = np.random.default_rng(0), {"id": pyarrow.string()}
    schema |= {name: pyarrow.list_(pyarrow.float32(), width) for name, width in onnx_models.INPUTS.items()}
    with ExitStack() as stack:
        if path.suffix == ".parquet":
            parquet = stack.enter_context(pyarrow.parquet.ParquetWriter(path, pyarrow.schema(schema)))
            write = partial(parquet.write_table, row_group_size=group)
        else:
            write = stack.enter_context(pyarrow.ipc.new_file(path, pyarrow.schema(schema))).write_table
        for number in range(groups):
            columns: list[Any] = [[f"v{number}-{row}" for row in range(group)]]
            for width in onnx_models.INPUTS.values():
                values = random.standard_normal(group * width, np.float32)
                columns.append(pyarrow.FixedSizeListArray.from_arrays(values, width))
            write(pyarrow.table(columns, pyarrow.schema(schema)))
    return path


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
    parser.add_argument("--form", choices=("tfrecord", "parquet", "arrow"), default="tfrecord")
    parser.add_argument("--group", type=int, default=10_000)
    options, passed_on = parser.parse_known_args()
    from scorer.inputs.discover import find_shards

    size = options.gigabytes * 1e9
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"soak.{options.form}"
        if options.form == "tfrecord":
            found = find_shards(options.shards) if options.shards else []
            records = b"".join(Path(shard.address).read_bytes() for shard in found) or own_records()
            write_records(path, records, round(size / len(records)))
        else:
            row = 4 * sum(onnx_models.INPUTS.values())
            write_columns(path, max(round(size / row / options.group), 1), options.group)
        result = soak(path, Path(folder), *passed_on)
    print(result)
    sys.exit(0 if result.flat else "memory or open files grew")


if __name__ == "__main__":
    main()
