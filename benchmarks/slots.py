"""Why the scorer runs a model in slots of one thread: the same session's ways to use the cores, per batch size.

    python -m benchmarks.slots --model models/bilstm.onnx --model models/bilstm.int8.onnx

`slots` is one session of one thread called from as many threads as there are cores; `one call` is one session of that
many threads, which at the end of every operator sleep (`sleeping`) or burn their cores (`spinning`) until the next.
Features lie in memory; rounds alternate; printed are medians of videos/s and, which other programs disturb less, of the
microseconds of a core that a video costs. A core that waits costs nothing there, one that spins does.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections import defaultdict
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from scorer.model.model import Model
from scorer.model.runtime import import_runtime
from scorer.system.cores import usable_cores

BATCHES = (64, 128, 256, 512, 1024, 2048)
PAUSE_SECONDS = (
    0.2  # a session that spins keeps spinning for a while after its last call, at the cost of whoever comes next
)


def session(path: str, threads: int, spin: bool) -> Any:
    onnxruntime = import_runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def rate(opened: Any, callers: int, features: dict[str, np.ndarray], seconds: float) -> tuple[float, float]:
    """Videos/s of `callers` threads that call the session over and over, and core-microseconds a video."""
    batch = len(next(iter(features.values())))
    done = [0] * callers
    began, used = time.perf_counter(), time.process_time()

    def work(caller: int) -> None:
        while done[caller] == 0 or time.perf_counter() - began < seconds:
            opened.run(None, features)
            done[caller] += batch

    threads = [threading.Thread(target=work, args=(caller,)) for caller in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - began), (time.process_time() - used) / sum(done) * 1e6


def sweep(path: str, cores: int, batches: list[int], rounds: int, seconds: float) -> Table:
    ways = {
        "slots": (session(path, 1, False), cores),
        "one call, sleeping": (session(path, cores, False), 1),
        "one call, spinning": (session(path, cores, True), 1),
    }
    table = Table("batch", *ways, title=f"{path}; {machine()}", title_justify="left")
    random = np.random.default_rng(0)
    inputs = Model.open(path, device="cpu", threads=1).facts.inputs
    for batch in batches:
        features = {name: random.normal(size=(batch, width)).astype(np.float32) for name, width in inputs.items()}
        rates = defaultdict(list)
        for _ in range(rounds):
            for name, (opened, callers) in ways.items():
                time.sleep(PAUSE_SECONDS)
                rates[name].append(rate(opened, callers, features, seconds))
        medians = [[statistics.median(column) for column in zip(*rates[name], strict=True)] for name in ways]
        table.add_row(f"{batch:,}", *(f"{speed:,.0f}  {cost:,.0f} us" for speed, cost in medians))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.6, help="of each measurement")
    options = parser.parse_args()
    for path in options.model:
        Console().print(sweep(path, usable_cores(), options.batches, options.rounds, options.seconds))


if __name__ == "__main__":
    main()
