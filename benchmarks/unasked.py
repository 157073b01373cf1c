"""What a feature that the model does not read costs: records a second with one of each form, against none.

    python -m benchmarks.unasked            with the compiled loops, and with NumPy

The records have YouTube-8M's features and widths. Rounds alternate, so that a slow moment hits all; the best pass of
each counts, in this process's own time on a core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from scorer.inputs.batching import batches
from scorer.inputs.discover import find_shards
from scorer.inputs.records import Schema
from scorer.kernels import loops, numpy_loops
from tests.shards import (
    bytes_feature,
    entry,
    example_of,
    field,
    float_feature,
    frame,
    int64_feature,
    varint,
)

WIDTHS = {"mean_rgb": 1024, "mean_audio": 128}
FORMS = {
    "none": b"",
    "an int64": entry("more", int64_feature([300])),
    "100 int64": entry("more", int64_feature(range(100, 200))),
    "3 int64, not packed": entry("more", field(3, b"".join(field(1, varint(n), 0) for n in range(3)))),
    "100 floats": entry("more", float_feature([1.0] * 100)),
    "3 floats, not packed": entry("more", field(2, 3 * field(1, b"\0\0\x80\x3f", 5))),
    "3 strings": entry("more", bytes_feature(b"a", b"bc", b"def")),
    "no value": entry("more", b""),
    "a key that is not ASCII": entry("ещё", bytes_feature(b"a")),
    "ten of them": b"".join(entry(f"more{n}", int64_feature([n])) for n in range(10)),
}


def write(path: Path, form: bytes, records: int) -> str:
    features = [
        entry(name, float_feature(np.random.default_rng(0).random(n, np.float32))) for name, n in WIDTHS.items()
    ]
    features += [entry("labels", int64_feature([1, 300, 2000]))]
    with path.open("wb") as file:
        for i in range(records):
            file.write(frame(example_of([*features, entry("id", bytes_feature(b"%04d" % i)), form])))
    return str(path)


def seconds(path: str) -> float:
    """Of this process, to decode one shard."""
    began = time.process_time()
    for batch in batches(find_shards([path]), Schema(WIDTHS), 1024):
        batch.release()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    sets = {each.NAME: each for each in (loops.active, numpy_loops)}
    best = {(name, form): float("inf") for name in sets for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        paths = {form: write(Path(folder, f"{i}"), FORMS[form], options.records) for i, form in enumerate(FORMS)}
        for _ in range(options.rounds):
            for name, form in best:
                with mock.patch.object(loops, "active", sets[name]):
                    best[name, form] = min(best[name, form], seconds(paths[form]))
    table = Table(title=f"Records a second with one more feature; {machine()}")
    for heading in ("", *(column for name in sets for column in (name, "of none"))):
        table.add_column(heading, justify="right" if heading else "left")
    for form in FORMS:
        cells = [(options.records / best[name, form], best[name, "none"] / best[name, form]) for name in sets]
        table.add_row(form, *(text for rate, ratio in cells for text in (f"{rate:,.0f}", f"{ratio:.0%}")))
    Console().print(table)


if __name__ == "__main__":
    main()
