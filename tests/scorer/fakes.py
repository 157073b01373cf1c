"""A predictor of plain NumPy and small shards for it, so that jobs can be tested without ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scorer.errors import DeviceError
from scorer.job.run import score
from scorer.job.spec import Job, Progress, Report
from scorer.model.predictor import Embeddings, Features, ModelFacts, Predictions, Predictor
from scorer.system.signals import StopRequest
from tests import shards

INPUTS = {"mean_rgb": 4, "mean_audio": 2}
LABELS = 30


FACTS = ModelFacts(
    path="fake.onnx",
    sha256="f" * 64,
    inputs=INPUTS,
    dtype="float32",
    labels=LABELS,
    names=None,
    metadata={},
    runtime="fake 1",
    device="cpu",
    provider="FakeProvider",
    reason="fake",
    embeddings=sum(INPUTS.values()),
)


class FakePredictor:
    """Scores that depend on the row alone: a fixed random linear map of the features, which are the embeddings too."""

    def __init__(self, batch_size: int = 8, slots: int = 1, facts: ModelFacts = FACTS) -> None:
        self.facts, self.batch_size, self.slots, self.notes = facts, batch_size, slots, list[str]()
        self._weights = np.random.default_rng(1).normal(size=(sum(INPUTS.values()), LABELS))

    def buffer(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        return np.empty(shape, np.float32)

    def run(self, features: Features, k: int = 10) -> Predictions:
        x = np.concatenate([features[name] for name in INPUTS], axis=1).astype(np.float64)
        scores = 1 / (1 + np.exp(-(x[:, :, None] * self._weights).sum(axis=1)))
        labels = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return Predictions(np.take_along_axis(scores, labels, axis=1).astype(np.float32), labels)

    def embed(self, features: Features, k: int = 10) -> tuple[Predictions, Embeddings]:
        return self.run(features, k), np.concatenate([features[name] for name in INPUTS], axis=1)


class FailingModel(FakePredictor):
    """Fails at batch number `at`."""

    def __init__(self, at: int) -> None:
        super().__init__(slots=1)  # one thread in all, so that batches come in order
        self.left = at

    def run(self, features: Features, k: int = 10) -> Predictions:
        self.left -= 1
        if self.left < 0:
            raise DeviceError("the device fell off")
        return super().run(features, k)


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


def do(job: Job, predictor: Predictor | None = None, stop: StopRequest | None = None) -> Report:
    """Run `job` with the fake predictor, unwatched, over its shards as they are now."""
    return do_as_found(replace(job, shards=shards.sources(shard.address for shard in job.shards)), predictor, stop)


def do_as_found(job: Job, predictor: Predictor | None = None, stop: StopRequest | None = None) -> Report:
    """As `do`, over the shards as they were when they were found."""
    return score(job, predictor or FakePredictor(), stop or StopRequest(), _unwatched)


def _unwatched(progress: Progress) -> None:
    pass


def files_of(output: Path) -> dict[str, bytes]:
    """Every file in the output's folder that belongs to it, by name."""
    return {path.name: path.read_bytes() for path in output.parent.glob(f"*{output.name}*")} | {
        path.name: path.read_bytes() for path in output.parent.glob(f".{output.name}*")
    }
