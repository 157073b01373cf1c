"""Videos per second, measured there and then: every candidate in turn, round after round, so that noise hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from export.videos import Videos
from scorer.model.predictor import Features


class Timed(Protocol):
    """What is timed: a model's `run`."""

    def run(self, features: Features) -> Any: ...


def measure(models: Mapping[str, Timed], videos: Videos, batch: int = 512, seconds: float = 1.0) -> dict[str, float]:
    """Videos per second of each model, the median over rounds, of about `seconds` each in all; at least three."""
    features = videos.rows(np.arange(batch) % len(videos))
    rates: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.run(features)
    stop = time.perf_counter() + seconds * len(models)
    while time.perf_counter() < stop or len(next(iter(rates.values()))) < 3:
        for name, model in models.items():
            start = time.perf_counter()
            model.run(features)
            rates[name].append(batch / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}
