"""Tiny labelled shards whose labels can be learned, and tiny models for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tests.shards import example, write_shard
from train.config import ModelConfig, TrainConfig
from train.data import Videos, padded
from train.registry import spec

INPUTS = (("mean_rgb", 8), ("mean_audio", 4))
LABELS = 25
SMALL: dict[str, Any] = {
    "inputs": INPUTS,
    "labels": LABELS,
    "embedding": 12,
    "hidden": 8,
    "head": 16,
    "width": 16,
    "dropout": 0.2,
}


def recipe(name: str, **train: Any) -> tuple[ModelConfig, TrainConfig]:
    """The default recipe of a model, tiny."""
    from dataclasses import replace

    model, config = spec(name).recipe
    return replace(model, **SMALL), replace(config, **{"epochs": 3, "batch": 16, "precision": "fp32", **train})


def videos(count: int, seed: int = 0) -> Videos:
    """`count` videos with one to three labels each, and features that say which."""
    random = np.random.default_rng(seed)
    counts = random.integers(1, 4, count)
    values = random.integers(0, LABELS, counts.sum())
    labels = padded(values, counts)
    codes = np.random.default_rng(0).normal(size=(LABELS + 1, 12)).astype(np.float32)
    codes[-1] = 0
    features = codes[labels].sum(axis=1) + 0.1 * random.normal(size=(count, 12)).astype(np.float32)
    ids = [f"v{seed}-{row}".encode() for row in range(count)]
    return Videos([features[:, :8].astype(np.float32), features[:, 8:].astype(np.float32)], labels, ids)


def write(path: Path, count: int, seed: int = 0, *, labels: list[int] | None = None) -> str:
    """A shard of `videos(count, seed)`, each with the labels given here if any."""
    made = videos(count, seed)
    return write_shard(
        path,
        (
            example(
                id,
                [int(label) for label in made.labels[row] if label >= 0] if labels is None else labels,
                {name: made.features[index][row] for index, (name, _) in enumerate(INPUTS)},
            )
            for row, id in enumerate(made.ids)
        ),
    )
