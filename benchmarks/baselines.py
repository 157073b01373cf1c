"""What the simplest models reach on the same videos: logistic regression and the YouTube-8M starter code's mixture.

    python -m benchmarks.baselines --out runs/baselines

The mixture is `MoeModel` of video_level_models.py (github.com/google/youtube-8m): for every label a softmax gate over
two logistic experts and one that always says no. As there, both see the concatenated features at length 1 unless a row
says otherwise, and learn by binary cross-entropy with Adam from 0.01, in batches of 1,024, gradients clipped at a norm
of 1, with an L2 penalty of 1e-8. The starter code's rate hardly falls within so few videos; here it falls to zero by
half a cosine, and there are more epochs, since five of 34,550 videos are too few steps: of logistic regression on
0000-0099, judged on 0100-0109, MAP@10 is 0.661, 0.682 and 0.699 after 10, 20 and 40. Measures are those after the
last epoch.

Each row's result is kept in --out as it finishes; a second call trains what is missing there.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cached import cached
from benchmarks.machine import processor
from benchmarks.split import add_split
from scorer.cli.command import run
from scorer.inputs.discover import find_shards
from train.config import YOUTUBE_8M, TrainConfig
from train.data import Videos, load
from train.devices import bf16_is_fast, choose_device, use_all_cores
from train.evaluate import Record, evaluate
from train.gather import Resident
from train.layers import Scaling, count_parameters, scalings
from train.losses import bce, targets_of
from train.measures import fisher_ratios
from train.training import learning_rate

LABELS = 3862
EXPERTS = 2
WIDTH = sum(width for _, width in YOUTUBE_8M)
MEASURES = ("MAP@10", "GAP@20", "Hit@1", "PERR")
L2 = 1e-8
CLIP = 1.0
TINY, NEARLY_ONE = 1e-30, 1 - 1e-6  # float32 has nothing between 1 - 6e-8 and 1


class Inputs(nn.Module):
    """The features side by side, (B, F) each -> (B, WIDTH): "raw" as they come, "unit" then at length 1 as the starter
    code has them, or "fisher", each input scaled as our models do."""

    def __init__(self, scaling: str, videos: Videos) -> None:
        super().__init__()
        self.unit = scaling == "unit"
        self.scales = nn.ModuleList(Scaling("fisher" if scaling == "fisher" else "raw", F) for _, F in YOUTUBE_8M)
        if scaling == "fisher":
            for scale, ratio in zip(scalings(self), fisher_ratios(videos), strict=True):
                scale.set_weight((ratio / ratio.mean()).sqrt())

    def forward(self, *inputs: Tensor) -> Tensor:
        x_BF = torch.cat([scale(values) for scale, values in zip(self.scales, inputs, strict=True)], dim=1)
        return functional.normalize(x_BF, dim=1) if self.unit else x_BF


class Mixture(nn.Module):
    """The starter code's MoeModel: (B, WIDTH) -> logits (B, LABELS) of p = sum over EXPERTS of gate * sigmoid(expert).

    The softmax over a label's gates has one place more, whose expert always says no. The gates have no bias.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.Linear(WIDTH, (EXPERTS + 1) * LABELS, bias=False)
        self.experts = nn.Linear(WIDTH, EXPERTS * LABELS)

    def forward(self, x_BF: Tensor) -> Tensor:
        gates = self.gates(x_BF).float().unflatten(1, (EXPERTS + 1, LABELS)).softmax(1)
        votes = self.experts(x_BF).float().unflatten(1, (EXPERTS, LABELS)).sigmoid()
        p_BL = (gates[:, :EXPERTS] * votes).sum(1)
        return p_BL.clamp(min=TINY).log() - (-p_BL.clamp(max=NEARLY_ONE)).log1p()


@dataclass
class Baseline:
    """One row: what it is, what it sees (`Inputs`), and how it is trained."""

    about: str
    mixture: bool
    scaling: str
    epochs: int
    lr: float

    @property
    def config(self) -> TrainConfig:
        return TrainConfig("bce", "zero", epochs=self.epochs, batch=1024, lr=self.lr, schedule="cosine")

    def network(self, videos: Videos) -> nn.Module:
        classify = Mixture() if self.mixture else nn.Linear(WIDTH, LABELS)
        return _Chain(Inputs(self.scaling, videos), classify)


class _Chain(nn.Sequential):
    """nn.Sequential whose first module takes several inputs."""

    def forward(self, *inputs: Tensor) -> Tensor:  # type: ignore[override]
        return self[1](self[0](*inputs))


BASELINES = {
    "logistic": Baseline("logistic regression", False, "raw", 40, 0.01),
    "logistic-unit": Baseline("logistic regression, features at length 1", False, "unit", 40, 0.01),
    "logistic-fisher": Baseline("logistic regression, our input scaling", False, "fisher", 40, 0.01),
    "mixture": Baseline("the starter code's MoE", True, "unit", 40, 0.01),
}


def train(baseline: Baseline, videos: Videos, valid: Resident, device: torch.device) -> Record:
    """Train a row; its measures after the last epoch, parameters, and seconds of the training alone."""
    config, resident = baseline.config, Resident(videos, device)
    torch.manual_seed(config.seed)
    model = baseline.network(videos).to(device)
    optimizer = torch.optim.Adam(model.parameters(), weight_decay=L2, fused=True)
    order = [rows for _ in range(config.epochs) for rows in torch.randperm(len(videos)).split(config.batch)]
    start = time.perf_counter()
    for done, rows in enumerate(order):
        optimizer.param_groups[0]["lr"] = learning_rate(config, done, len(order))
        ((inputs, labels),) = resident.batches([rows])
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device)):
            logits = model(*inputs)
        bce(logits, targets_of(labels, "bce")).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found = evaluate(model, valid, "bce")
    count = count_parameters(model)
    return found | {"parameters": count, "epochs": config.epochs, "seconds": time.perf_counter() - start}


def main() -> int:
    options = _parser().parse_args()
    return run("benchmarks.baselines", {}, lambda: _run(options), "train")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_split(parser, "results")
    parser.add_argument("--only", nargs="+", choices=BASELINES, default=list(BASELINES))
    parser.add_argument("--epochs", type=int, help="[each row's own]")
    parser.add_argument("--lr", type=float, help="[each row's own]")
    parser.add_argument("--device", default="auto")
    return parser


def _run(options: argparse.Namespace) -> int:
    use_all_cores()
    device = choose_device(options.device, 0)
    videos, held = (load(find_shards(shards), YOUTUBE_8M, LABELS) for shards in (options.data, options.valid))
    valid = Resident(held, device)
    made = Table(title=f"{len(videos):,} training videos, {processor()}", title_justify="left")
    made.add_column("baseline")
    for name in (*MEASURES, "parameters", "epochs", "seconds"):
        made.add_column(name, justify="right")
    for name in options.only:
        row = BASELINES[name]
        row = replace(row, epochs=options.epochs or row.epochs, lr=options.lr or row.lr)
        about = {"row": asdict(row), "data": [videos.fingerprint(), held.fingerprint()]}
        found = cached(options.out / f"{name}.json", about, partial(train, row, videos, valid, device))
        counts = (f"{found[key]:,.0f}" for key in ("parameters", "epochs", "seconds"))
        made.add_row(row.about, *(f"{found[key]:.4f}" for key in MEASURES), *counts)
        print(f"{row.about}: MAP@10 {found['MAP@10']:.4f}", file=sys.stderr, flush=True)
    Console(width=None if sys.stdout.isatty() else 120).print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
