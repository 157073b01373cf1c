"""A picture of a run: loss and MAP@10 per epoch, training and validation, as the report's Figures 8 and 9 show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.evaluate import Record
from train.files import replace_file
from train.plots import figure


def draw(path: Path, title: str, log: Sequence[Record]) -> None:
    """Write the curves of the epochs in `log` as a PNG. Raises OutputError."""
    with figure(10, 4) as made:
        _draw(made, title, log)
        replace_file(path, lambda part: made.savefig(part, format="png", dpi=110))


def _draw(made: Any, title: str, log: Sequence[Record]) -> None:
    epochs = [record["epoch"] for record in log]
    for axes, train, valid, name in zip(
        made.subplots(1, 2), ("train_loss", "train_MAP@10"), ("valid_loss", "MAP@10"), ("loss", "MAP@10"), strict=True
    ):
        axes.plot(epochs, [record[train] for record in log], label="training", marker=".")
        axes.plot(epochs, [record[valid] for record in log], label="validation", marker=".")
        axes.set(title=f"{title}: {name}", xlabel="epoch", ylabel=name)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
