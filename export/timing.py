"""Videos per second, measured there and then: every candidate in turn, round after round, so that noise hits all."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from export.build import Exported, TracedCheckpoint, write
from export.plain import plain_export
from export.videos import VideoSample
from scorer.model.model import Model
from scorer.model.predictor import Features
from scorer.system.phases import At, nobody, portion

PLAIN_EXPORT = "plain export"


@dataclass(frozen=True)
class Timing:
    """What was timed: videos/s by file name, the plain export's among them, and its size in bytes."""

    rates: Mapping[str, float]
    plain_bytes: int

    def cells(self, name: str) -> list[str]:
        return [f"{self.rates[name]:,.0f}", f"{self.rates[name] / self.rates[PLAIN_EXPORT]:.2f}"]


def time_files(traced: TracedCheckpoint, written: Sequence[Exported], check: VideoSample, at: At = nobody) -> Timing:
    """Time each file against the plain export of the same checkpoint, about a second each.

    Raises OSError where the temporary folder has no room for the plain export, ModelError where there can be none.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plain.onnx"
        size = write(path, plain_export(traced.model, traced.checkpoint.config.inputs, traced.metadata))
        at(0.5)
        models = {PLAIN_EXPORT: Model.open(str(path), device="cpu")}
        models |= {exported.path.name: Model.open(str(exported.path), device="cpu") for exported in written}
        return Timing(measure(models, check, at=portion(at, 0.5, 1.0)), size)


class Timed(Protocol):
    """What is timed: a model's `run`."""

    def run(self, features: Features) -> Any: ...


def measure(
    models: Mapping[str, Timed], videos: VideoSample, batch: int = 512, seconds: float = 1.0, at: At = nobody
) -> dict[str, float]:
    """Videos per second of each model, the median over rounds, of about `seconds` each in all; at least three."""
    features = videos.rows(np.arange(batch) % len(videos))
    rates: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():
        model.run(features)
    begin = time.perf_counter()
    stop = begin + seconds * len(models)
    while time.perf_counter() < stop or len(next(iter(rates.values()))) < 3:
        for name, model in models.items():
            start = time.perf_counter()
            model.run(features)
            rates[name].append(batch / (time.perf_counter() - start))
        at((time.perf_counter() - begin) / (stop - begin))
    return {name: statistics.median(found) for name, found in rates.items()}
