"""The scorer for Python programs: `from scorer import Scorer`."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer.errors import UsageError
from scorer.inputs.discover import find_shards
from scorer.model.find import open_model
from scorer.model.model import Model
from scorer.pipeline.predict import PredictionBatch, PredictionStream


@dataclass(frozen=True)
class Prediction:
    """One video's best labels.

    id: as the record has it.
    labels: k label indices, best first; equal scores by ascending label.
    scores: k confidences in [0, 1], descending.
    names: the k labels' names where the model carries names, else None.
    """

    id: str
    labels: tuple[int, ...]
    scores: tuple[float, ...]
    names: tuple[str, ...] | None


class Scorer:
    """An open model. Its methods may be called from several threads.

        scorer = Scorer()                                            # models/default.onnx, else the bundled model
        for video in scorer.predict(["samples/a.tfrecord"]): ...
        scores, labels = scorer.score(mean_rgb=rgb, mean_audio=audio, k=5)

    model: the `scorer.model.model.Model` behind it; its `facts` are the file's inputs, labels, metadata and device.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        tf32: bool = False,
        gpu_memory: int | None = None,
    ) -> None:
        """Open `model`, a file or a name in models/.

        Args:
            device: "auto", "cpu", "cuda", "cuda:N", "cuda:N,M,..." or "cuda:all"; "auto" takes CUDA where it opens.
            threads: CPU threads that compute; all usable cores by default.
            batch_size: videos that run at once; the device's best by default.
            tf32: let CUDA round the factors of float32 products to 10 bits, which is faster and less exact.
            gpu_memory: bytes that ONNX Runtime may take of each GPU; all by default.

        Raises:
            ModelError: no such model, or a file that is damaged or not of this scorer.
            DeviceError: the device or ONNX Runtime is not there.
        """

        def open_path(path: str) -> Model:
            return Model.open(
                path, device=device, threads=threads, batch_size=batch_size, tf32=tf32, gpu_memory=gpu_memory
            )

        self.model, _ = open_model(None if model is None else os.fspath(model), open_path)

    def predict(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        k: int = 10,
        workers: int | None = None,
    ) -> Generator[Prediction]:
        """The predictions of every video in the shards `paths` (files, patterns or folders), in order.

        Shards are read while the model works; memory does not grow with them. Closing the generator ends that.

        Raises:
            InputError: no such shard, or one that cannot be read.
            ShardError, RecordError: the first damaged shard or bad record; what comes before its batch is given first.
            UsageError: a shard given twice, or `k` outside 1 to the model's labels.
        """
        given = [paths] if isinstance(paths, str | os.PathLike) else paths
        shards = find_shards([os.fspath(path) for path in given])
        self._check_k(k)
        source = PredictionStream(self.model, shards, k, workers=workers)
        with closing(source.from_position()) as predicted:
            for batch in chain.from_iterable(predicted):
                yield from self._predictions(batch)

    def score(self, *, k: int = 10, **features: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best `k` labels of n videos: scores float32 (n, k), descending, and labels int64 (n, k).

        Args:
            features: by the name of each of the model's inputs, numbers (n, width).

        Raises:
            UsageError: missing or unknown features, other shapes, NaN or infinity, or `k` outside 1 to the labels.
        """
        self._check_k(k)
        if unknown := features.keys() - self.model.facts.inputs.keys():
            raise UsageError(f"the model reads {list(self.model.facts.inputs)}, not {sorted(unknown)[0]}")
        arrays = {name: np.asarray(values, np.float32) for name, values in features.items()}
        for name, values in arrays.items():
            if not np.isfinite(values).all():
                raise UsageError(f"{name} has NaN or infinity in it")
        return self.model.run(arrays, k)

    def _check_k(self, k: int) -> None:
        if not 1 <= k <= self.model.facts.labels:
            raise UsageError(
                f"k is {k}", remedy=f"choose 1 to {self.model.facts.labels}, the labels of {self.model.facts.path}"
            )

    def _predictions(self, predicted: PredictionBatch) -> list[Prediction]:
        names = self.model.facts.names
        rows = zip(predicted.batch.ids, predicted.labels.tolist(), predicted.scores.tolist(), strict=True)
        return [
            Prediction(
                id.decode(), tuple(labels), tuple(scores), tuple(names[label] for label in labels) if names else None
            )
            for id, labels, scores in rows
        ]
