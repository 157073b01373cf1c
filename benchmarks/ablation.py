"""Why the report's DMRNet failed: its setting with one thing changed at a time, and ours with one of the report's.

    python -m benchmarks.ablation --out runs/ablation --plot docs/pictures/dmrnet_failure.png
    python -m benchmarks.ablation --out runs/ablation --only 'report*' --epochs 40

BatchNorm can spoil the evaluation without spoiling the training: it is trained with each batch's own statistics and
evaluated with running ones, which lag where steps are few and the momentum is high. So MAP@10 is taken twice after
each epoch: as it is, and with statistics measured afresh on training videos, as these weights see them in training.

Each variant's result is kept in --out as it finishes; a second call trains what is missing there. A variant whose loss
is not finite is a result too.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.cached import cached
from benchmarks.machine import processor
from benchmarks.split import add_split
from scorer.cli.command import run
from scorer.errors import TrainingError
from scorer.inputs.discover import find_shards
from train.config import Recipe, TrainConfig
from train.data import load
from train.devices import choose_device, use_all_cores
from train.distributed import World
from train.evaluate import Record, evaluate
from train.registry import spec
from train.training import Data, Training

FRESH = "fresh MAP@10"
BATCH = 10240

THEIRS: Recipe = (
    replace(spec("dmrnet").published, bn_momentum=0.01),  # Keras' 0.99
    TrainConfig(loss="listwise", bias="zero", batch=BATCH, lr=1e-3, epochs=12),
)
"""As near to the report's as is known: its averaging form, features as they are, Keras' defaults and plain Adam. How
deep its DMRNet was is not known, so it is tried with one block a part and with four."""
DEEP = {"input_blocks": 4, "joint_blocks": 4}
OURS: Recipe = (
    replace(spec("dmrnet").recipe[0], width=spec("dmrnet").published.width),
    replace(spec("dmrnet").recipe[1], epochs=5, batch=1024, weights="torch"),
)
"""The default recipe, which has the report's loss, as wide as the report's, in as many epochs as tell variants apart;
in batches and from output weights that suit so few epochs."""

Changes = dict[str, dict[str, Any]]
_FIXED: Changes = {
    "as it is": {},
    "BatchNorm momentum 0.9": {"bn_momentum": 0.1},
    "bias at the log odds": {"bias": "prior"},
    "both of these": {"bn_momentum": 0.1, "bias": "prior"},
}
SIDES: dict[str, tuple[Recipe, Changes]] = {
    "report": (
        THEIRS,
        _FIXED
        | {
            "merge-and-run form": {"form": "run"},
            "batch 1,024": {"batch": 1024},
            "Fisher-weighted inputs": {"scaling": "fisher"},
            "binary cross-entropy": {"loss": "bce"},
        },
    ),
    "report, deeper": (THEIRS, {change: DEEP | values for change, values in _FIXED.items()}),
    "ours": (
        OURS,
        {
            "as it is": {},
            "BatchNorm momentum 0.99": {"bn_momentum": 0.01},
            "batch 10,240": {"batch": BATCH},
            "zero bias": {"bias": "zero"},
            "all three": {"bn_momentum": 0.01, "batch": BATCH, "bias": "zero"},
            "averaging form": {"form": "average"},
            "raw inputs": {"scaling": "raw"},
        },
    ),
}
"""Side -> its recipe, and name -> what a variant changes in it."""


@dataclass
class Variant:
    """One row and one curve; its name is like "report: batch 1,024"."""

    side: str
    change: str
    recipe: Recipe

    @property
    def name(self) -> str:
        return f"{self.side}: {self.change}"

    def place(self, out: Path) -> Path:
        return out / f"{re.sub(r'[^a-z0-9.]+', '-', self.name.lower())}.json"


@dataclass
class Result:
    """A variant's steps an epoch, its record after each epoch, and why it stopped if it did."""

    variant: Variant
    steps: int
    log: list[Record]
    stopped: str = ""


class FreshView:
    """The view of a run (train/training.py) that adds to each epoch's record MAP@10 with statistics taken afresh."""

    def __init__(self, training: Training) -> None:
        self.training = training

    def step(self, done: int, steps: int) -> None:
        pass

    def epoch(self, record: Record) -> None:
        training = self.training
        fresh = with_fresh_statistics(training.state.average, training.sample_data.features)
        record[FRESH] = evaluate(fresh, training.valid_data, training.config.loss)["MAP@10"]

    def log(self, line: str) -> None:
        pass


@torch.no_grad()
def with_fresh_statistics(model: nn.Module, inputs: Sequence[torch.Tensor]) -> nn.Module:
    """A copy of the model whose BatchNorm statistics are those of the videos `inputs`, (n, width) each, seen as in
    training (dropout too): what the running ones would come to if these weights stood still."""
    copy = deepcopy(model)
    for module in copy.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.momentum = 1.0
    copy.train()
    copy(*inputs)
    return copy


def variants(patterns: Sequence[str], epochs: int | None = None, batch: int | None = None) -> list[Variant]:
    """Those whose names fit one of the patterns; `epochs` in place of each side's own, `batch` of the report's."""
    every = [
        Variant(side, change, changed(recipe, values | ({"epochs": epochs} if epochs else {})))
        for side, (recipe, changes) in SIDES.items()
        for change, values in changes.items()
    ]
    for variant in every:
        if batch and variant.recipe[1].batch == BATCH:
            variant.recipe = changed(variant.recipe, {"batch": batch})
    return [variant for variant in every if any(fnmatch(variant.name, pattern) for pattern in patterns)]


def changed(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with these fields of either configuration replaced."""
    model, config = recipe
    of_model = {name: value for name, value in values.items() if hasattr(model, name)}
    return replace(model, **of_model), replace(config, **{n: v for n, v in values.items() if n not in of_model})


def trained(variant: Variant, data: Data, device: torch.device) -> dict[str, Any]:
    """Train a variant; the fields of its `Result`."""
    training = Training(*variant.recipe, data, device, World())
    stopped = ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            training.run(Path(folder), FreshView(training), lambda: False)
        except TrainingError as error:
            stopped = str(error)
    return {"steps": training.plan.steps, "log": training.state.progress.log, "stopped": stopped}


def table(side: str, results: Sequence[Result]) -> Table:
    """A side's training loss and MAP@10 after a quarter, half and all of the epochs."""
    epochs = max(len(result.log) for result in results)
    shown = sorted({max(1, epochs // 4), max(1, epochs // 2), epochs})
    made = Table(title=f"{side}: after {' / '.join(map(str, shown))} epochs", title_justify="left")
    made.add_column("variant", min_width=24)
    for name in ("steps an epoch", "loss", "MAP@10", "with fresh statistics"):
        made.add_column(name, justify="right")
    for result in results:
        at = {int(record["epoch"]): record for record in result.log}
        cells = [
            " / ".join(form.format(at[epoch][key]) if epoch in at else "stopped" for epoch in shown)
            for key, form in (("loss", "{:.1f}"), ("MAP@10", "{:.3f}"), (FRESH, "{:.3f}"))
        ]
        made.add_row(result.variant.change, str(result.steps), *cells)
    return made


def plot(sides: dict[str, list[Result]], path: Path) -> None:
    """A column for each side: training loss, MAP@10 as it is, MAP@10 with fresh statistics.

    As losses are of different kinds, each is shown as a share of its first epoch's.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(sides), 11), layout="constrained")
    rows = {"loss": "training loss / that of epoch 1", "MAP@10": "MAP@10", FRESH: "MAP@10 with fresh statistics"}
    grid = figure.subplots(len(rows), len(sides), sharex="col", sharey="row", squeeze=False)
    for column, (side, results) in enumerate(sides.items()):
        for axes, (key, name) in zip(grid[:, column], rows.items(), strict=True):
            for result in results:
                epochs = [record["epoch"] for record in result.log]
                width = 3 if result.variant.change == "as it is" else 1.3
                values = [record[key] / (result.log[0][key] if key == "loss" else 1) for record in result.log]
                axes.plot(epochs, values, label=result.variant.change, linewidth=width)
            axes.grid(alpha=0.3)
            axes.locator_params(axis="x", integer=True)
            axes.set(ylabel=name if not column else "")
        grid[0, column].set_title(side)
        grid[0, column].legend(fontsize=8)
        grid[-1, column].set_xlabel("epoch")
    FigureCanvasAgg(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=90)


def main() -> int:
    options = _parser().parse_args()
    return run("benchmarks.ablation", {}, lambda: _run(options), "train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_split(parser, "results")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="of variants' names")
    parser.add_argument("--epochs", type=int, help="[each side's own]")
    parser.add_argument("--batch", type=int, help=f"in place of {BATCH:,}, for as many steps with fewer videos")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--plot", type=Path)
    return parser


def _run(options: argparse.Namespace) -> int:
    use_all_cores()
    device = choose_device(options.device, 0)
    model = THEIRS[0]
    train, valid = (load(find_shards(shards), model.inputs, model.labels) for shards in (options.data, options.valid))
    data = Data(train, valid)
    print(f"{len(train):,} training videos, {processor()}")
    sides: dict[str, list[Result]] = {}
    for variant in variants(options.only, options.epochs, options.batch):
        about = [data.fingerprint(), asdict(variant.recipe[0]), asdict(variant.recipe[1])]
        start = time.monotonic()
        result = Result(variant, **cached(variant.place(options.out), about, partial(trained, variant, data, device)))
        sides.setdefault(variant.side, []).append(result)
        print(f"{_brief(result)}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    for side, results in sides.items():
        Console(width=None if sys.stdout.isatty() else 120).print(table(side, results))
    if options.plot:
        plot(sides, options.plot)
    return 0


def _brief(result: Result) -> str:
    if not result.log:
        return f"{result.variant.name}: {result.stopped}"
    last = result.log[-1]
    return f"{result.variant.name}: MAP@10 {last['MAP@10']:.4f}, fresh {last[FRESH]:.4f} {result.stopped}"


if __name__ == "__main__":
    sys.exit(main())
