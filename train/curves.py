"""A picture of a run: loss and MAP@10 per epoch, training and validation, as the report's Figures 8 and 9 show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from train.evaluate import Record
from train.files import replace_file


def draw(path: Path, title: str, log: Sequence[Record]) -> None:
    """Write the curves of the epochs in `log` as a PNG. Raises OutputError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [record["epoch"] for record in log]
    for axes, train, valid, name in zip(
        figure.subplots(1, 2), ("train_loss", "train_MAP@10"), ("valid_loss", "MAP@10"), ("loss", "MAP@10"), strict=True
    ):
        axes.plot(epochs, [record[train] for record in log], label="training", marker=".")
        axes.plot(epochs, [record[valid] for record in log], label="validation", marker=".")
        axes.set(title=f"{title}: {name}", xlabel="epoch", ylabel=name)
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    FigureCanvasAgg(figure)
    replace_file(path, lambda part: figure.savefig(part, format="png", dpi=110))
