"""Everything there is to measure on a GPU, in one go of less than eight minutes, as tables for docs/performance.md.

    python -m benchmarks.gpu                             # a random BiLSTM of the report's size, the sample shards
    python -m benchmarks.gpu --models models/bilstm*.onnx --data '../shared/data/yt8m/*.tfrecord'

1. Exactness, for each model: equal scores among the ten best, how the GPU ordered them and how the scorer does;
   whether a video's bits depend on its place and on the batch size; labels against the CPU's, by the first model.
2. Speed, for each model: the session alone on data that lies on the GPU, the model fed from memory, and `score` from a
   shard in the page cache to the committed file, the first and the last with and without CUDA graphs. Rounds
   alternate; medians.
3. What the CPU can feed, by cores: the same job with a model that costs nothing.
4. Training: `python -m benchmarks.train`, ours against the straightforward loop, and MFU, in batches of 4,096 and 512;
   the time for soft labels; batches of 512 with CUDA graphs.

What is missing of what it needs is said before anything is measured. What fails then says so, and the rest is run.
Rows are printed as they are known. Goals on an H100 with BiLSTM in fp16: 1,000,000 videos/s end to end, at least 0.7
of the session alone.

On a machine without a package index, install what it has not by `pip install --no-index --no-deps` from wheels:
onnxruntime-gpu (before any onnxruntime in the path), crc32c and tfrecord (`pip wheel` makes its wheel), which few
machines have, numpy, protobuf, rich, torch for CUDA, onnx and safetensors; and build the compiled loops there
(`python setup.py build_ext --inplace`) or bring scorer/kernels/native.abi3.so: without them decoding is less than half
as fast, as the first line says. NVIDIA's libraries are found beside onnxruntime or in LD_LIBRARY_PATH.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.free import FreePredictor
from benchmarks.machine import machine
from benchmarks.tables import print_header, print_row
from scorer.errors import DeviceError, Yt8mError
from scorer.inputs.batching import batches
from scorer.inputs.discover import find_shards
from scorer.inputs.records import Schema
from scorer.job.run import score
from scorer.job.spec import Job
from scorer.model.contract import OUTPUTS
from scorer.model.cuda import OwnThread
from scorer.model.model import Model
from scorer.model.onnx_file import ModelFile
from scorer.model.predictor import Features, Predictions, Predictor
from scorer.model.runtime import GpuOptions, import_runtime, load_cuda, open_cuda
from scorer.model.ties import SPARE
from scorer.system.signals import StopRequest

K = 10
GOAL, GOAL_RATIO = 1_000_000, 0.7
TRAINING_VIDEOS = 40_000
TRAINING_SECONDS = 150
"""That the models of one kind may take, so that all else gets its turn."""
SOFT_VIDEOS = 10_000
_VIDEO_BYTES = 4700
_EXPORT = "torch", "onnx", "safetensors"  # what makes models
_TRAINING = "torch", "safetensors", "tfrecord"
R = TypeVar("R")


@dataclass(frozen=True)
class Setting:
    """What every part measures with.

    data: the shards given. shard: they, over and over, in one large one in the page cache. folder: to write in.
    """

    options: argparse.Namespace
    folder: Path
    models: Sequence[str]
    data: Sequence[str]
    shard: str

    @property
    def gpu(self) -> int:
        return int(self.options.device.partition(":")[2].partition(",")[0] or 0)

    def open(self, path: str, batch_size: int | None = None, *, graphs: bool = False) -> Model:
        options, size = self.options, batch_size or self.options.batch_size
        return Model.open(path, device=options.device, batch_size=size, tf32=options.tf32, cuda_graphs=graphs)


def main() -> int:
    options = arguments()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            check_packages(options)
            setting = prepare(options, Path(folder))
        except Yt8mError as error:
            print(f"benchmarks.gpu: {error}", file=sys.stderr)
            return error.exit_code
        parts = [exactness, speed, feeding]
        if not options.no_training:
            parts += [training_in_large_batches, training_in_small_batches, soft_labels, training_with_graphs]
        failed = [part.__name__ for part in parts if not run(part, setting)]
    print(f"\n{time.perf_counter() - began:.0f} s in all" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return DeviceError.exit_code if failed else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=[], metavar="FILE", help="the first is what others should answer"
    )
    parser.add_argument("--data", nargs="+", default=["samples/*.tfrecord"], metavar="SHARD")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, cuda:N,M or cuda:all")
    parser.add_argument("--gigabytes", type=float, default=5, help="of shards to score: 4.7 KB a video")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement but the jobs'")
    parser.add_argument("--no-training", action="store_true")
    return parser.parse_args()


def check_packages(options: argparse.Namespace) -> None:
    """Raises DeviceError where ONNX Runtime, any other package or PyTorch's CUDA is missing."""
    load_cuda(import_runtime())
    wanted = [*(() if options.models else _EXPORT), *(() if options.no_training else _TRAINING)]
    missing = [name for name in dict.fromkeys(wanted) if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "install them, or leave parts out with --models and --no-training"
        raise DeviceError(f"there is no {', no '.join(missing)}", remedy=remedy)
    if options.no_training:
        return
    import torch

    if not torch.cuda.is_available():
        remedy = "install one for CUDA, or leave training out with --no-training"
        raise DeviceError(f"this PyTorch, {torch.__version__}, finds no GPU", remedy=remedy)


def prepare(options: argparse.Namespace, folder: Path) -> Setting:
    """Models and one large shard. Raises Yt8mError where a GPU is not there or does not work."""
    shards = [source.address for source in find_shards(options.data)]
    models = options.models or random_models(folder)
    Model.open(models[0], device=options.device)
    setting = Setting(
        options, folder, models, shards, join(shards, folder / "joined.tfrecord", options.gigabytes * 1e9)
    )
    facts = setting.open(models[0]).facts
    print(f"{gpu_name(setting.gpu)}; {machine()}\n{facts.runtime}, device {facts.device}", flush=True)
    return setting


def run(part: Callable[[Setting], None], setting: Setting) -> bool:
    """Whether `part` came to its end."""
    print(f"\n## {part.__name__.replace('_', ' ')}\n", flush=True)
    began = time.perf_counter()
    try:
        part(setting)
    except Exception as error:  # the other parts are worth having
        print(f"FAILED: {type(error).__name__}: {error}")
        return False
    finally:
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)
    return True


def random_models(folder: Path) -> list[str]:
    """BiLSTM of the report's size with random weights, in every precision."""
    from export.build import convert, trace_checkpoint, write
    from export.videos import random_videos
    from train.checkpoint import Checkpoint
    from train.registry import build, spec

    config, _ = spec("bilstm").recipe
    traced = trace_checkpoint(Checkpoint(config, dict(build(config).eval().state_dict()), {}))
    videos = random_videos(traced.inputs, 1024)
    paths = [folder / f"random{suffix}.onnx" for suffix in ("", ".fp16", ".int8")]
    for path, precision in zip(paths, ("fp32", "fp16", "int8"), strict=True):
        write(path, convert(traced, precision, videos))
    return list(map(str, paths))


# ---- exactness


def exactness(setting: Setting) -> None:
    first = Model.open(setting.models[0], device="cpu")
    print_header("model", "equal scores", "at the border", "GPU's order wrong", "ours wrong", "bits alike when moved",
                 "in batches of 512", "of 2,048", f"labels as {Path(setting.models[0]).name} on the CPU")  # fmt: skip
    for path in setting.models:
        model = setting.open(path)
        features = noisy_videos(setting, model)
        raw = SessionOnGpu(setting, path, model.batch_size, K + SPARE).predict(features)
        found = model.run(features, K)
        print_row(
            Path(path).name,
            percent((raw.scores[:, 1:K] == raw.scores[:, : K - 1]).any(axis=1)),
            percent(raw.scores[:, K - 1] == raw.scores[:, K]),
            percent(misordered(raw, K)),
            percent(misordered(found, K)),
            "yes" if moved_alike(model, features, found) else "NO",
            *(percent(same_bits(setting, path, size, features, found)) for size in (512, 2048)),
            percent((first.run(features, K).labels == found.labels).all(axis=1)),
        )


def noisy_videos(setting: Setting, model: Model) -> Features:
    """A batch of real videos, over and over, with noise on them."""
    shards = find_shards(setting.options.data)
    some = next(batches(shards, Schema(model.facts.inputs), min(model.batch_size, 256))).features
    random = np.random.default_rng(0)
    count = model.batch_size
    return {
        name: np.resize(x, (count, x.shape[1])) + random.normal(0, 0.1, (count, x.shape[1])).astype(np.float32)
        for name, x in some.items()
    }


def misordered(found: Predictions, k: int) -> NDArray[np.bool_]:
    """Rows in which a label stands before a lower one of the same score."""
    scores, labels = found.scores[:, :k], found.labels[:, :k]
    wrong: NDArray[np.bool_] = ((scores[:, 1:] == scores[:, :-1]) & (labels[:, 1:] < labels[:, :-1])).any(axis=1)
    return wrong


def moved_alike(model: Model, features: Features, found: Predictions) -> bool:
    """Whether every video has the same bits at another place in the batch."""
    moved = model.run({name: np.roll(x, 777, axis=0) for name, x in features.items()}, K)
    return bool((np.roll(moved.scores, -777, axis=0) == found.scores).all())


def same_bits(setting: Setting, path: str, size: int, features: Features, found: Predictions) -> NDArray[np.bool_]:
    """Rows whose bits are those of another batch size."""
    same: NDArray[np.bool_] = (setting.open(path, size).run(features, K).scores == found.scores).all(axis=1)
    return same


# ---- speed


def speed(setting: Setting) -> None:
    print_header("model, videos/s", *ALONE_TO_WHOLE, "of the session", "goals")
    whole_failed = []
    for path in setting.models:
        rates = {kind: statistics.median(found) for kind, found in model_rates(setting, path).items()}
        alone, whole = (rates.get(kind, float("nan")) for kind in ("session alone", "whole job"))
        goals = "met" if whole >= GOAL and whole >= GOAL_RATIO * alone else "missed"
        numbers = (f"{rates[kind]:,.0f}" if kind in rates else "failed" for kind in ALONE_TO_WHOLE)
        print_row(Path(path).name, *numbers, f"{whole / alone:.0%}", goals)
        whole_failed += [path] if "whole job" not in rates else []
    if whole_failed:
        raise DeviceError(f"no job came to its end with {', '.join(whole_failed)}")


ALONE_TO_WHOLE = "session alone", "with a CUDA graph", "from memory", "whole job", "with CUDA graphs"


def model_rates(setting: Setting, path: str) -> dict[str, list[float]]:
    """videos/s of each kind, round by round; what fails is printed and left out."""
    model, seconds, shard = setting.open(path), setting.options.seconds, setting.shard
    size = model.batch_size
    kinds: dict[str, Callable[[], Callable[[], float]]] = {
        "session alone": lambda: partial(SessionOnGpu(setting, path, size, K).rate, seconds),
        "with a CUDA graph": lambda: partial(SessionOnGpu(setting, path, size, K, graphs=True).rate, seconds),
        "from memory": lambda: partial(from_memory, model, seconds),
        "whole job": lambda: partial(whole_job, model, shard),
        "with CUDA graphs": lambda: partial(whole_job, setting.open(path, graphs=True), shard),
    }
    measures = {kind: tried(kind, open_) for kind, open_ in kinds.items()}
    rates = defaultdict(list)
    for _ in range(setting.options.rounds):
        for kind, measure in measures.items():
            if measure is not None and (rate := tried(kind, measure)) is not None:
                rates[kind].append(rate)
    return rates


def tried(what: str, function: Callable[[], R]) -> R | None:
    """What the function gives; None where it fails, which is said."""
    try:
        return function()
    except Exception as error:
        print(f"FAILED: {what}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


class SessionOnGpu:
    """A session of its own, in a thread of its own, whose features and predictions lie on the GPU."""

    def __init__(self, setting: Setting, path: str, size: int, k: int, *, graphs: bool = False) -> None:
        self._size, self._k, self._gpu = size, k, setting.gpu
        self._thread = OwnThread("resident")
        self._thread.do(self._open, path, GpuOptions(tf32=setting.options.tf32, graphs=graphs))

    def rate(self, seconds: float) -> float:
        """videos/s, one run after the other."""
        return self._thread.do(self._rate, seconds)

    def predict(self, features: Features) -> Predictions:
        """As the GPU gives it."""
        return self._thread.do(self._predict, features)

    def _open(self, path: str, options: GpuOptions) -> None:
        runtime = import_runtime()
        with ModelFile(path) as file:
            self._session = open_cuda(runtime, file, self._gpu, options)
        make, copy = runtime.OrtValue.ortvalue_from_shape_and_type, runtime.OrtValue.ortvalue_from_numpy
        random = np.random.default_rng(0)
        tensors = {"k": copy(np.array([self._k]))}
        for node in self._session.get_inputs():
            self._dtype = np.float16 if node.type == "tensor(float16)" else np.float32
            values = random.normal(0, 0.5, (self._size, node.shape[1])).astype(self._dtype)
            tensors[node.name] = copy(values, "cuda", self._gpu)
        for name, kind in zip(OUTPUTS, (np.float32, np.int64), strict=True):
            tensors[name] = make([self._size, self._k], kind, "cuda", self._gpu)
        self._tensors = tensors  # the binding does not keep them
        self._binding = self._session.io_binding()
        for name, tensor in tensors.items():
            bind = self._binding.bind_ortvalue_output if name in OUTPUTS else self._binding.bind_ortvalue_input
            bind(name, tensor)
        self._rate(0.1)

    def _rate(self, seconds: float) -> float:
        runs, began = 0, time.perf_counter()
        while runs == 0 or time.perf_counter() - began < seconds:
            self._session.run_with_iobinding(self._binding)
            runs += 1
        return runs * self._size / (time.perf_counter() - began)

    def _predict(self, features: Features) -> Predictions:
        for name, values in features.items():
            self._tensors[name].update_inplace(np.ascontiguousarray(values, self._dtype))
        self._session.run_with_iobinding(self._binding)
        return Predictions(*(self._tensors[name].numpy() for name in OUTPUTS))


def from_memory(model: Model, seconds: float) -> float:
    """videos/s of the model fed with one batch in memory over and over, in all of its slots."""
    random = np.random.default_rng(0)
    features = {
        name: random.random((model.batch_size, width), np.float32) for name, width in model.facts.inputs.items()
    }
    began = time.perf_counter()

    def work(_: int) -> int:
        runs = 0
        while runs == 0 or time.perf_counter() - began < seconds:
            model.run(features)
            runs += 1
        return runs

    threads = 2 * model.slots
    with ThreadPoolExecutor(threads) as pool:
        runs = sum(pool.map(work, range(threads)))
    return runs * model.batch_size / (time.perf_counter() - began)


def whole_job(model: Predictor, shard: str) -> float:
    """videos/s of a job, from the shard to the committed file."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(find_shards([shard]), str(Path(folder) / "preds.csv"))
        done = score(job, model, StopRequest(), lambda progress: None)
    return done.record.scored / done.seconds


# ---- what the CPU can feed


def feeding(setting: Setting) -> None:
    cores = sorted(os.sched_getaffinity(0))
    counts = sorted({1, 2, 4, 8, 16, len(cores)})
    print_header("cores", "videos/s of a model that costs nothing", "times one core")
    one = 0.0
    try:
        for count in (count for count in counts if count <= len(cores)):
            os.sched_setaffinity(0, cores[:count])
            rate = whole_job(FreePredictor(slots=count), setting.shard)
            one = one or rate
            print_row(str(count), f"{rate:,.0f}", f"{rate / one:.2f}")
    finally:
        os.sched_setaffinity(0, cores)


# ---- training


def training_in_large_batches(setting: Setting) -> None:
    train(setting, "--batch", "4096")


def training_in_small_batches(setting: Setting) -> None:
    train(setting, "--batch", "512")


def training_with_graphs(setting: Setting) -> None:
    train(setting, "--batch", "512", "--compile")


def train(setting: Setting, *options: str) -> None:
    """The models one after the other; rows stand as they are known."""
    shard = join(setting.data, setting.folder / "training.tfrecord", TRAINING_VIDEOS * _VIDEO_BYTES)
    command = [sys.executable, "-m", "benchmarks.train", "--data", shard, "--rounds", "2", "--steps", "30"]
    command += ["--device", f"cuda:{setting.gpu}", *options]
    subprocess.run(command, check=True, timeout=TRAINING_SECONDS)


def soft_labels(setting: Setting) -> None:
    from train.data import load
    from train.devices import choose_device
    from train.distillation.cache import cached_soft_labels
    from train.registry import spec

    config, _ = spec("bilstm").recipe
    shard = join(setting.data, setting.folder / "soft.tfrecord", SOFT_VIDEOS * _VIDEO_BYTES)
    videos = load(find_shards([shard]), config.inputs, config.labels)
    began = time.perf_counter()
    cached_soft_labels(
        videos, config.labels, None, lambda share, what: None, device=choose_device(f"cuda:{setting.gpu}", 0)
    )
    print(f"{len(videos):,} videos' soft labels in {time.perf_counter() - began:.1f} s")


# ---- helpers


def join(shards: Sequence[str], target: Path, size: float) -> str:
    """One shard of at least `size` bytes: `shards` over and over, which one after the other are a shard."""
    with target.open("wb") as joined:
        while joined.tell() < size:
            for path in shards:
                with open(path, "rb") as shard:
                    shutil.copyfileobj(shard, joined, 1 << 24)
    return str(target)


def gpu_name(gpu: int) -> str:
    query = "--query-gpu=name,driver_version,pcie.link.gen.current,pcie.link.width.current"
    command = ["nvidia-smi", f"--id={gpu}", query, "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "a GPU that nvidia-smi does not know"


def percent(rows: NDArray[Any]) -> str:
    return f"{100 * float(np.mean(rows)):.2f}%"


if __name__ == "__main__":
    sys.exit(main())
