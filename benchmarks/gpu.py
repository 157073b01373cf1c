"""What a GPU does: the session alone on data that lies on it, the model fed from memory, and `score` end to end.

    python -m benchmarks.gpu --model models/bilstm.fp16.onnx --data '../shared/data/yt8m/*.tfrecord'

The shards are joined and repeated into one (shards one after the other are a shard), so that the job is long enough to
measure; just written, it lies in the page cache. Rounds alternate; printed are medians.
Goals on an H100-class GPU with the fp16 BiLSTM: 1,000,000 videos/s end to end, at least half of the session alone.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from scorer.errors import DeviceError, Yt8mError
from scorer.inputs.discover import find_shards
from scorer.job.run import score
from scorer.job.spec import Job
from scorer.model.contract import OUTPUTS
from scorer.model.model import Model
from scorer.model.onnx_file import ModelFile
from scorer.model.runtime import GpuOptions, import_runtime, open_cuda
from scorer.system.signals import StopRequest

K = 10
GOAL, GOAL_RATIO = 1_000_000, 0.5


def main() -> int:
    options = arguments()
    try:
        return measure(options)
    except Yt8mError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return error.exit_code


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", nargs="+", default=["../shared/data/yt8m/*.tfrecord"], metavar="SHARD")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cuda:N,M")
    parser.add_argument("--gigabytes", type=float, default=10, help="of shards to score: 4.7 KB a video")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--workers", type=int, help="decoding processes")
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3, help="of each measurement but the job's")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> int:
    model = Model.open(options.model, device=options.device, batch_size=options.batch_size, tf32=options.tf32)
    gpu = int(model.facts.device.removeprefix("cuda:").split(",")[0])
    alone = {graph: Resident(options.model, model, gpu, options.tf32, graph=graph) for graph in (False, True)}
    rates = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        shard = join(
            [shard.address for shard in find_shards(options.data)], Path(folder) / "joined.tfrecord", options.gigabytes
        )
        for _ in range(options.rounds):
            rates["session alone"].append(alone[False].rate(options.seconds))
            rates["session alone, CUDA graph"].append(alone[True].rate(options.seconds))
            rates["model from memory"].append(from_memory(model, options.seconds))
            rates["score, end to end"].append(end_to_end(model, shard, options.workers))
    return report(f"{model.facts.path} on {gpu_name(gpu)}; {machine()}", model, rates)


class Resident:
    """A session of its own whose features and answers never leave the GPU."""

    def __init__(self, path: str, model: Model, gpu: int, tf32: bool, *, graph: bool) -> None:
        runtime = import_runtime()
        self.size = model.batch_size
        with ModelFile(path) as file:
            self.session = open_cuda(runtime, file, gpu, GpuOptions(tf32=tf32, graphs=graph))
        kind = np.float16 if self.session.get_inputs()[0].type == "tensor(float16)" else np.float32
        random = np.random.default_rng(0)
        tensors = {
            name: runtime.OrtValue.ortvalue_from_numpy(random.normal(size=(self.size, width)).astype(kind), "cuda", gpu)
            for name, width in model.facts.inputs.items()
        }
        tensors["k"] = runtime.OrtValue.ortvalue_from_numpy(np.array([K]))
        make = runtime.OrtValue.ortvalue_from_shape_and_type
        tensors["scores"] = make([self.size, K], np.float32, "cuda", gpu)
        tensors["labels"] = make([self.size, K], np.int64, "cuda", gpu)
        self.tensors = tensors  # the binding does not keep them
        self.binding = self.session.io_binding()
        for name, tensor in tensors.items():
            bind = self.binding.bind_ortvalue_output if name in OUTPUTS else self.binding.bind_ortvalue_input
            bind(name, tensor)
        self.rate(0.1)

    def rate(self, seconds: float) -> float:
        """Videos/s, one run after the other."""
        runs, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            self.session.run_with_iobinding(self.binding)
            runs += 1
        return runs * self.size / (time.perf_counter() - began)


def from_memory(model: Model, seconds: float) -> float:
    """Videos/s of the model fed with one batch in memory over and over, in all of its slots."""
    random = np.random.default_rng(0)
    features = {
        name: random.random((model.batch_size, width), np.float32) for name, width in model.facts.inputs.items()
    }
    began = time.perf_counter()

    def work(slot: int) -> int:
        runs = 0
        while time.perf_counter() - began < seconds:
            model.run(features)
            runs += 1
        return runs

    with ThreadPoolExecutor(model.slots) as pool:
        runs = sum(pool.map(work, range(model.slots)))
    return runs * model.batch_size / (time.perf_counter() - began)


def end_to_end(model: Model, shard: Path, workers: int | None) -> float:
    """Videos/s of a whole job, from the shard to the committed file."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(find_shards([str(shard)]), str(Path(folder) / "preds.csv"), workers=workers)
        done = score(job, model, StopRequest(), lambda progress: None)
    return done.record.scored / done.seconds


def join(shards: list[str], target: Path, gigabytes: float) -> Path:
    """One shard of at least `gigabytes`: `shards` one after the other, as often as it takes."""
    with target.open("wb") as joined:
        while joined.tell() < gigabytes * 1e9:
            for path in shards:
                with open(path, "rb") as shard:
                    shutil.copyfileobj(shard, joined, 1 << 24)
    return target


def gpu_name(gpu: int) -> str:
    command = ["nvidia-smi", f"--id={gpu}", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise DeviceError(f"nvidia-smi does not answer: {error}", remedy="run this where there is a GPU") from error


def report(title: str, model: Model, rates: dict[str, list[float]]) -> int:
    medians = {name: statistics.median(seen) for name, seen in rates.items()}
    best = max(medians["session alone"], medians["session alone, CUDA graph"])
    table = Table("", "videos/s", "of the session alone", title=title, title_justify="left")
    for name, rate in medians.items():
        table.add_row(name, f"{rate:,.0f}", f"{rate / best:.0%}")
    Console().print(table)
    whole = medians["score, end to end"]
    print(f"batches of {model.batch_size:,} in {model.slots} slots; {'; '.join(model.notes) or 'memory sufficed'}")
    print(f"goals: {GOAL:,} videos/s {'met' if whole >= GOAL else 'missed'}, "
          f"{GOAL_RATIO:.0%} of the session {'met' if whole / best >= GOAL_RATIO else 'missed'}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
