"""Rows a second and bytes a row of each output format, beside what the format's own library needs for the same rows.

    python -m benchmarks.formats

Rounds alternate; printed are medians of CPU time, that of all threads together. Compression and Parquet include the
packing at a job's end. The peers are given lists or arrays that stand ready, and write into memory as ours do.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.rows import predictions
from scorer.kernels.packed import PackedStrings
from scorer.outputs.formats import make_format
from scorer.outputs.row_format import RowOptions

FORMATS = ("pairs", "labels", "jsonl", "parquet", "pairs.gz", "pairs.zst", "jsonl.gz", "jsonl.zst")


class MadeRows:
    """The same predictions in the forms that ours and the peers take."""

    def __init__(self, videos: int, k: int, batch: int) -> None:
        ids, self.labels, self.scores = predictions(videos, k, id_bytes=4)
        self.names = [name.decode() for name in ids]
        self.lists = self.labels.tolist(), [[round(score, 6) for score in row] for row in self.scores.tolist()]
        parts = [slice(start, start + batch) for start in range(0, videos, batch)]
        self.batches = [(PackedStrings.of(ids[part]), self.labels[part], self.scores[part]) for part in parts]

    def ours(self, name: str, options: RowOptions) -> int:
        made = make_format(name, options)
        staged = made.header + b"".join(made.rows(*batch) for batch in self.batches)
        if made.pack is None:
            return len(staged)
        target = io.BytesIO()
        made.pack(io.BytesIO(staged), target.write)
        return target.tell()

    def csv_module(self) -> int:
        text = io.StringIO()
        pairs = (
            " ".join(f"{label} {score:f}" for label, score in zip(labels, scores, strict=True))
            for labels, scores in zip(*self.lists, strict=True)
        )
        csv.writer(text, lineterminator="\n").writerows(zip(self.names, pairs, strict=True))
        return len(text.getvalue().encode())

    def json_text(self) -> bytes:
        encode = json.JSONEncoder(separators=(",", ":")).encode
        rows = zip(self.names, *self.lists, strict=True)
        return "".join(
            encode({"id": name, "labels": labels, "scores": scores}) + "\n" for name, labels, scores in rows
        ).encode()

    def pyarrow(self) -> int:
        k = self.labels.shape[1]
        offsets = pa.array(np.arange(len(self.names) + 1, dtype=np.int32) * k)
        lists = [
            pa.ListArray.from_arrays(offsets, pa.array(values.ravel()))
            for values in (self.labels.astype(np.int32), self.scores)
        ]
        target = io.BytesIO()
        pq.write_table(pa.table({"id": self.names, "labels": lists[0], "scores": lists[1]}), target, compression="zstd")
        return target.tell()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=65_536)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    rows = MadeRows(options.videos, options.top_k, options.batch)
    named = RowOptions(names=[f"label number {label}" for label in range(3862)])
    candidates: dict[str, Callable[[], int]] = {
        **{name: partial(rows.ours, name, RowOptions()) for name in FORMATS},
        "pairs, threshold 0.5": lambda: rows.ours("pairs", RowOptions(0.5)),
        "jsonl with names": lambda: rows.ours("jsonl", named),
        "parquet with names": lambda: rows.ours("parquet", named),
        "peer: csv of Python": rows.csv_module,
        "peer: json of Python": lambda: len(rows.json_text()),
        "peer: json and gzip": lambda: len(gzip.compress(rows.json_text(), 6)),
        "peer: pyarrow": rows.pyarrow,
    }
    seconds, sizes = defaultdict(list), {}
    for _ in range(options.rounds):
        for name, work in candidates.items():
            began = time.process_time()
            sizes[name] = work()
            seconds[name].append(time.process_time() - began)
    table = Table(title=f"{options.top_k} labels a row, batches of {options.batch}; {machine()}")
    for heading in ("", "rows/s of a core", "bytes a row"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, seen in seconds.items():
        table.add_row(name, f"{options.videos / statistics.median(seen):,.0f}", f"{sizes[name] / options.videos:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
