"""The training loop against the straightforward one, for each model, in one run.

    python -m benchmarks.train                    # on the CPU or the first GPU
    python -m benchmarks.train --batch 16384 --compile

The straightforward loop is what one writes first: a DataLoader over the `tfrecord` package, dense multi-hot labels,
torch.nn.LSTM as it is, float32, Adam, in a process of its own, since ours changes how its process gets memory. Ours is
the step of train/training.py on shards that were decoded once (the time for that is printed). Neither mixes videos nor
averages weights. Rounds of the two alternate, so that a slow minute hits both; printed are medians.

Model FLOP utilisation (MFU) counts the products of the model's own forward and backward pass (no recurrent weights at
one step, no elementwise work) against the peak, which is what a large matrix product reaches in the same run in the
precision that ours trains in.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, repeat
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ChainDataset, DataLoader
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.machine import processor
from benchmarks.tables import print_header, print_row
from scorer.cli.command import run
from scorer.errors import TrainingError
from scorer.inputs.discover import find_shards
from train.config import ModelConfig, TrainConfig
from train.data import Videos, load
from train.devices import choose_device, use_all_cores
from train.distributed import World
from train.models.lstm import Recurrent
from train.registry import build, names, spec
from train.training import Data, Training

PEAK_SIZE = 4096
"""Rows and columns of the peak's matrices."""
HELD_OUT = 64


@dataclass
class Comparison:
    """One model: videos/s of the straightforward loop and of ours, and ours in FLOP per video and share of the peak."""

    name: str
    plain: float
    ours: float
    flops: float
    peak: float

    @property
    def mfu(self) -> float:
        return self.ours * self.flops / self.peak


def main() -> int:
    options = _parser().parse_args()
    return run("benchmarks.train", {}, lambda: _run(options), "train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["../shared/data/yt8m/validate00[0-3]*.tfrecord"])
    parser.add_argument("--model", nargs="+", choices=names(), default=names())
    parser.add_argument("--batch", type=int, default=4096, help="videos a step, of both loops")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="steps a round of ours [1 on a CPU, 50 on a GPU]")
    parser.add_argument("--loader-workers", type=int, default=2, help="processes of the straightforward loop's loader")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile our model")
    return parser


def _run(options: argparse.Namespace) -> int:
    use_all_cores()
    device = choose_device(options.device, 0)
    shards = find_shards(options.data)
    start = time.perf_counter()
    model = spec("bilstm").recipe[0]
    videos = load(shards, model.inputs, model.labels)
    seconds = time.perf_counter() - start
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{len(videos):,} videos decoded once in {seconds:.2f} s")
    if len(videos) < options.batch:  # of which the straightforward loop would wait for the first for ever
        raise TrainingError(f"they are fewer than a batch of {options.batch:,}", remedy="give more shards")
    print(f"batches of {options.batch:,}{', torch.compile' * options.compile}")
    print_header("model", "straightforward", "ours", "ratio", "MFLOP/video", "TFLOP/s", "peak", "MFU")
    for name in options.model:
        _show(_compare(name, options, videos, [shard.address for shard in shards], device))
    return 0


def _compare(
    name: str, options: argparse.Namespace, videos: Videos, paths: list[str], device: torch.device
) -> Comparison:
    model, config = spec(name).recipe
    config = replace(config, batch=options.batch, mixup=0.0, soft=False, ema=0.0, epochs=10**6, compile=options.compile)
    held = videos.rows(np.arange(HELD_OUT))
    training = Training(model, config, Data(videos, held), device, World())
    ours = _our_steps(training)
    steps = options.steps or (50 if device.type == "cuda" else 1)
    rates: dict[str, list[float]] = {"ours": [], "plain": [], "peak": []}
    with _elsewhere(_plain_steps, model, config, paths, options, device) as plain_rate:
        next(ours)
        for _ in range(options.rounds):
            rates["peak"].append(_peak(device, training.half or torch.float32))
            rates["ours"].append(_rate(ours, steps, device))
            rates["plain"].append(plain_rate(max(1, steps // 10)))
    flops = _flops(training, model)
    medians = {kind: statistics.median(values) for kind, values in rates.items()}
    return Comparison(name, medians["plain"], medians["ours"], flops, medians["peak"])


def _our_steps(training: Training) -> Iterator[int]:
    """Step after step of the loop of train/training.py; gives the videos of each."""
    training.model.train()
    done = 0
    for epoch in range(10**6):
        order = training._order(epoch).unbind()
        for inputs, targets in training.batches(order, epoch):
            training._step(inputs, targets, done)
            done += 1
            yield len(inputs[0])


def _plain_steps(
    model: ModelConfig, config: TrainConfig, paths: list[str], options: argparse.Namespace, device: torch.device
) -> Iterator[int]:
    """Step after step of the straightforward loop; gives the videos of each."""
    torch.manual_seed(config.seed)
    network = _with_plain_lstms(build(replace(model, scaling="raw"))).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=config.lr)
    for inputs, target in _loader(model, paths, options):
        logits = network(*(values.to(device) for values in inputs))
        loss = _dense_loss(config.loss, logits, target.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        yield len(target)


def _dense_loss(name: str, logits: Tensor, target: Tensor) -> Tensor:
    """The losses as Keras writes them, on multi-hot targets."""
    if name == "bce":
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    p = logits.sigmoid() / logits.sigmoid().sum(1, keepdim=True) if name == "listwise" else logits.softmax(1)
    return -(target * p.clamp(1e-7, 1 - 1e-7).log()).sum(1).mean()


def _loader(model: ModelConfig, paths: list[str], options: argparse.Namespace) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Batches from the `tfrecord` package's Dataset, over and over."""
    from tfrecord.torch.dataset import TFRecordDataset

    def example(record: dict[str, np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
        target = np.zeros(model.labels, np.float32)
        target[record["labels"]] = 1
        return [record[name] for name, _ in model.inputs], target

    description = {**{name: "float" for name, _ in model.inputs}, "labels": "int"}
    shards = [TFRecordDataset(path, None, description, transform=example) for path in paths]
    loader = DataLoader(
        ChainDataset(shards),
        batch_size=options.batch,
        num_workers=options.loader_workers,
        drop_last=True,
        multiprocessing_context="fork" if options.loader_workers else None,  # others would pickle `example`
    )
    return chain.from_iterable(repeat(loader))


def _with_plain_lstms(network: torch.nn.Module) -> torch.nn.Module:
    """The same model, its recurrent layers computed by torch.nn.LSTM whatever the number of steps."""
    for module in network.modules():
        if isinstance(module, Recurrent):
            module.steps = 0  # not 1, so that the live gates are not computed alone
            module.requires_grad_(True)
    return network


@contextmanager
def _elsewhere(make: Callable[..., Iterator[int]], *given: Any) -> Iterator[Callable[[int], float]]:
    """`_rate` of the steps that `make(*given)` gives, the device last, taken in a process of its own after one step."""
    here, there = Pipe()
    process = get_context("spawn").Process(target=_serve_rates, args=(there, make, given))
    process.start()
    there.close()  # so that its end is seen here

    def rate(count: int) -> float:
        here.send(count)
        return float(here.recv())

    try:
        here.recv()
        yield rate
    except (EOFError, ConnectionError):
        raise TrainingError("the straightforward loop ended; why stands above") from None
    finally:
        with suppress(ConnectionError):
            here.send(0)
        process.join()


def _serve_rates(asked: Connection[Any, Any], make: Callable[..., Iterator[int]], given: tuple[Any, ...]) -> None:
    use_all_cores()
    steps = make(*given)
    asked.send(next(steps))
    while count := asked.recv():
        asked.send(_rate(steps, count, given[-1]))


def _rate(steps: Iterator[int], count: int, device: torch.device) -> float:
    """Videos per second over `count` steps."""
    _settle(device)
    start = time.perf_counter()
    videos = sum(next(steps) for _ in range(count))
    _settle(device)
    return videos / (time.perf_counter() - start)


def _peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: the best of a few."""
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE, device=device).to(dtype)
    repeats = 20 if device.type == "cuda" else 2

    def seconds() -> float:
        _settle(device)
        start = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        _settle(device)
        return (time.perf_counter() - start) / repeats

    return float(2 * PEAK_SIZE**3 / min(seconds() for _ in range(3)))


def _flops(training: Training, model: ModelConfig) -> float:
    """Floating-point operations of a forward and backward pass, per video, in products alone."""
    with torch.device("cpu"):
        network = build(model)
        inputs = [torch.zeros(HELD_OUT, width) for _, width in model.inputs]
    with FlopCounterMode(display=False) as counter:
        network(*inputs).sum().backward()
    return counter.get_total_flops() / HELD_OUT


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _show(row: Comparison) -> None:
    print_row(
        row.name,
        f"{row.plain:,.0f} videos/s",
        f"{row.ours:,.0f} videos/s",
        f"{row.ours / row.plain:.1f}",
        f"{row.flops / 1e6:,.0f}",
        f"{row.ours * row.flops / 1e12:.2f}",
        f"{row.peak / 1e12:.2f}",
        f"{row.mfu:.0%}",
    )


if __name__ == "__main__":
    sys.exit(main())
