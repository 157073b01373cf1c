"""Shards that are large in every way, and how much memory it takes to read them.

python -m tests.fuzz.large          ten million tiny records and one of 10 GB (a sparse file); takes minutes
"""

from __future__ import annotations

import os
import resource
import struct
import sys
import tempfile
import time
from pathlib import Path

from crc32c import crc32c

from scorer.inputs.batching import batches
from scorer.inputs.source import LocalFile
from tests import shards
from tests.fuzz import check


def tiny_records(path: str, count: int) -> None:
    """Alternately nothing at all, which is no tf.Example of ours, and the smallest good record."""
    thousand = b"".join([shards.frame(b""), shards.frame(check.GOOD[0])] * 500)
    with open(path, "wb") as file:
        for _ in range(count // 1000):
            file.write(thousand)


def huge_record(path: str, size: int) -> None:
    """A record of `size` zeros under right CRCs, a multiple of 1 MiB, and a good one behind it."""
    zeros, crc = bytes(1 << 20), 0
    for _ in range(size >> 20):
        crc = crc32c(zeros, crc)
    mask = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    length = struct.pack("<Q", size)
    with open(path, "wb") as file:
        file.write(length + struct.pack("<I", shards.masked_crc(length)))
        file.seek(size, os.SEEK_CUR)
        file.write(struct.pack("<I", mask) + shards.frame(check.GOOD[0]))


def read(path: str) -> tuple[int, int]:
    """Good and bad records."""
    good = bad = 0
    for batch in batches([LocalFile.at(path)], check.SCHEMA, 4096, on_error="skip"):
        good, bad = good + len(batch), bad + len(batch.quarantined)
        batch.release()
    return good, bad


def peak() -> float:
    """Most memory ever resident, in MiB."""
    scale = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def main(tiny: int = 10_000_000, huge: int = 10_000 << 20) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "x.tfrecord"))
        shards.write_shard(path, [b"", *check.GOOD])
        read(path)
        print(f"{peak():6.0f} MiB after a small shard")
        for make, size in ((tiny_records, tiny), (huge_record, huge)):
            make(path, size)
            began = time.monotonic()
            good, bad = read(path)
            taken = time.monotonic() - began
            print(f"{peak():6.0f} MiB after {make.__name__} {size:,}: {good:,} good, {bad:,} bad, {taken:.0f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
