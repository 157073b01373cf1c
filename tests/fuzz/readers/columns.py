"""Parquet and Arrow files: bytes changed, and files that declare or expand to far more than they have."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from scorer.inputs.batching import batches
from scorer.inputs.records import Schema
from tests import shards
from tests.fuzz.readers.harness import FuzzedReader
from tests.fuzz.readers.mutations import NUMBERS, changed_bytes

_INPUTS = {"mean_rgb": 8, "mean_audio": 4}
_MIB = 256
_ROWS = 40


def make_parquet(folder: Path) -> FuzzedReader:
    return _reader(folder, _parquet, lambda data: len(data) - 8 - struct.unpack_from("<I", data, len(data) - 8)[0])


def make_arrow(folder: Path) -> FuzzedReader:
    return _reader(folder, _arrow, lambda data: len(data) - 10 - struct.unpack_from("<i", data, len(data) - 10)[0])


def _reader(folder: Path, write: Callable[[Random, Any], bytes], footer: Callable[[bytes], int]) -> FuzzedReader:
    path = folder / "shard"
    originals = [write(Random(number), _table(Random(number), _ROWS)) for number in range(6)]

    def make(random: Random) -> bytes:
        if random.random() < 0.05:
            return write(random, _bomb(random))
        data = random.choice(originals)
        if random.random() < 0.6:  # where lengths and types stand
            start = max(4, footer(data))
            return data[:start] + changed_bytes(random, data[start:-8]) + data[-8:]
        return changed_bytes(random, data, originals)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found = 0
        for batch in batches(shards.sources([str(path)]), Schema(_INPUTS), 64, on_error="skip"):
            found += len(batch)
            assert all(np.isfinite(values[: len(batch)]).all() for values in batch.features.values())
            batch.release()

    return FuzzedReader(make, read, _MIB, _MIB)


def _parquet(random: Random, table: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(
        table,
        file,
        row_group_size=random.choice((7, 1 << 20)),
        compression=random.choice(("none", "snappy", "gzip", "zstd", "lz4", "brotli")),
        use_dictionary=random.random() < 0.5,
        data_page_version=random.choice(("1.0", "2.0")),
    )
    return file.getvalue()


def _arrow(random: Random, table: Any) -> bytes:
    file = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=random.choice((None, "zstd", "lz4")))
    with pa.ipc.new_file(file, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=random.choice((7, 1 << 20)))
    return file.getvalue()


def _table(random: Random, rows: int) -> Any:
    values = np.random.default_rng(random.randrange(100))
    columns: dict[str, Any] = {"id": [f"v{row}" for row in range(rows)], "labels": [[row % 9] for row in range(rows)]}
    for name, width in _INPUTS.items():
        floats = values.normal(size=(rows, width)).astype(np.float32).tolist()
        columns[name] = pa.array(floats, random.choice((pa.list_(pa.float32()), pa.list_(pa.float32(), width))))
    return pa.table(columns)


def _bomb(random: Random) -> Any:
    """A table that is small where it lies and large once it is read, or of other types than are asked for."""
    rows = random.choice((1, 100, 20_000))
    many = random.choice((10, 100_000, 4_000_000)) // rows
    zeros = pa.array(np.zeros(rows * many, np.float32))
    ends = pa.array(np.arange(rows + 1, dtype=np.int32) * many)
    nested: Any = pa.array([[1.0]] * rows)
    for _ in range(random.choice((1, 20, 60))):
        nested = pa.ListArray.from_arrays(pa.array(np.arange(len(nested) + 1, dtype=np.int32)), nested)
    strange = [
        pa.ListArray.from_arrays(ends, zeros),
        nested,
        pa.array(["x" * (many * 4)] * rows).dictionary_encode(),
        pa.array([{"a": 1}] * rows),
        pa.nulls(rows),
        pa.array([b"x" * many] * rows),
        pa.array([NUMBERS[9]] * rows),
        pa.array([True] * rows),
        pa.array([[["a"]]] * rows),
        pa.array([0] * rows, pa.timestamp("us")),
    ]
    table = _table(random, rows).to_pydict()
    columns: dict[str, Any] = {name: pa.array(values) for name, values in table.items()}
    columns[random.choice([*columns])] = random.choice(strange)
    return pa.table(columns)
