"""A model of plain NumPy and small shards for it, so that jobs can be tested without ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from scorer.inputs.example import Schema
from scorer.job.run import score
from scorer.job.spec import Job, Progress, Report
from scorer.model.model import Model
from tests import shards

INPUTS = {"mean_rgb": 4, "mean_audio": 2}
LABELS = 30


class FakeModel:
    """Scores that depend on the row alone: a fixed random linear map, with the attributes that a job reads."""

    path, sha256, runtime, provider, device, reason = "fake.onnx", "f" * 64, "fake 1", "FakeProvider", "cpu", "fake"
    inputs, labels, names, schema = INPUTS, LABELS, None, Schema(INPUTS)

    def __init__(self, batch_size: int = 8, lanes: int = 1) -> None:
        self.batch_size, self.lanes, self.notes = batch_size, lanes, list[str]()
        self._weights = np.random.default_rng(1).normal(size=(sum(INPUTS.values()), LABELS))

    def run(self, features: Mapping[str, NDArray[np.float32]], k: int = 10) -> tuple[NDArray, NDArray]:
        x = np.concatenate([features[name] for name in INPUTS], axis=1).astype(np.float64)
        scores = 1 / (1 + np.exp(-(x[:, :, None] * self._weights).sum(axis=1)))
        labels = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(scores, labels, axis=1).astype(np.float32), labels


def fake_model(batch_size: int = 8, lanes: int = 1) -> Model:
    return cast(Model, FakeModel(batch_size, lanes))


def write_shards(folder: Path, counts: Sequence[int], *, labelled: bool = True, seed: int = 0) -> list[str]:
    """Shards of `counts` videos each, named a.tfrecord, b.tfrecord and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    paths = []
    for index, count in enumerate(counts):
        records = [_record(random, f"{index}-{row}", labelled) for row in range(count)]
        paths.append(shards.write_shard(folder / f"{chr(97 + index)}.tfrecord", records))
    return paths


def _record(random: np.random.Generator, name: str, labelled: bool) -> bytes:
    features = {name: random.normal(size=width).astype(np.float32) for name, width in INPUTS.items()}
    labels = random.choice(LABELS, size=random.integers(0, 4), replace=False).tolist() if labelled else None
    return shards.example(name, labels, features)


def do(job: Job, model: Model | None = None, stop: threading.Event | None = None) -> Report:
    """Run `job` with the fake model, unwatched."""
    return score(job, model or fake_model(), stop or threading.Event(), _unwatched)


def _unwatched(progress: Progress) -> None:
    pass


def files_of(output: Path) -> dict[str, bytes]:
    """Every file in the output's folder that belongs to it, by name."""
    return {path.name: path.read_bytes() for path in output.parent.glob(f"*{output.name}*")} | {
        path.name: path.read_bytes() for path in output.parent.glob(f".{output.name}*")
    }
