"""The scorer for Python programs: `from yt8m import Scorer`."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, get_args

from numpy.typing import ArrayLike

from scorer.errors import ModelError, UsageError
from scorer.inputs.batching import Quarantined
from scorer.inputs.discover import find_shards
from scorer.model.arguments import as_features, check_finite, check_whole_number
from scorer.model.find import open_model
from scorer.model.model import Model
from scorer.model.predictor import Predictions
from scorer.outputs.sink import Chunk
from scorer.pipeline.predict import OnError, PredictionStream
from scorer.system.signals import interruptible


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


class PredictionIterator(Iterator[Prediction]):
    """Predictions in order, made ahead in other threads, which end with it or when it is closed.

    quarantined: the bad records before and among those given so far, a few batches ahead of them (on_error="skip").
    """

    def __init__(self, predicted: Generator[Chunk], names: Sequence[str] | None) -> None:
        self.quarantined: list[Quarantined] = []
        self._videos = _videos(predicted, names, self.quarantined)

    def __next__(self) -> Prediction:
        return next(self._videos)

    def close(self) -> None:
        """End the threads; there are no more predictions."""
        self._videos.close()

    def __enter__(self) -> PredictionIterator:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _videos(
    predicted: Generator[Chunk], names: Sequence[str] | None, quarantined: list[Quarantined]
) -> Generator[Prediction]:
    with closing(predicted):
        for chunk in predicted:
            quarantined += chunk.quarantined
            rows = zip(chunk.ids.split(), chunk.labels.tolist(), chunk.scores.tolist(), strict=True)
            for id, labels, scores in rows:
                named = tuple(names[label] for label in labels) if names else None
                yield Prediction(id.decode(), tuple(labels), tuple(scores), named)


class Scorer:
    """An open model. Its methods may be called from several threads; pickled, it opens the same file again.

    with Scorer() as scorer:                                     # models/default.onnx, else the bundled model
        for video in scorer.predict(["samples/a.tfrecord"]): ...
        scores, labels = scorer.score(mean_rgb=rgb, mean_audio=audio, k=5)
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
        provider: str | None = None,
    ) -> None:
        """Open `model`, a file or a name in models/.

        Args:
            device: "auto", "cpu", "cuda", "cuda:N", "cuda:N,M,..." or "cuda:all"; "auto" takes CUDA where it opens.
            threads: CPU threads that compute; all usable cores by default.
            batch_size: videos that run at once; the device's best by default.
            tf32: let CUDA round the factors of float32 products to 10 bits, which is faster and less exact.
            gpu_memory: bytes that ONNX Runtime may take of each GPU; all by default.
            provider: instead of a device, another execution provider of ONNX Runtime, such as "openvino" or
                "openvino:device_type=GPU".

        Raises:
            ModelError: no such model, or a file that is damaged or not of this scorer.
            DeviceError: the device or ONNX Runtime is not there.
            UsageError: an option that cannot be.
        """
        self._options: dict[str, Any] = {
            "device": device,
            "threads": threads,
            "batch_size": batch_size,
            "tf32": tf32,
            "gpu_memory": gpu_memory,
            "provider": provider,
        }
        name = None if model is None else os.fspath(model)
        self._model: Model | None
        # a model may keep ONNX Runtime busy for ever
        self._model, _ = interruptible(lambda: open_model(name, lambda path: Model.open(path, **self._options)))

    @property
    def model(self) -> Model:
        """The `scorer.model.model.Model` behind it; its `facts` are the file's inputs, labels, metadata and device.

        Raises UsageError once the scorer is closed.
        """
        if self._model is None:
            raise UsageError("the scorer is closed", remedy="open another")
        return self._model

    @property
    def names(self) -> Sequence[str] | None:
        """The labels' names, by label; None where the model carries none."""
        return self.model.facts.names

    def predict(
        self,
        paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
        *,
        k: int = 10,
        on_error: OnError = "fail",
    ) -> PredictionIterator:
        """The predictions of every video in the shards `paths` (files, patterns or folders), in order.

        Shards are read while the model works; memory does not grow with them. Closing what is returned ends that.

        Args:
            on_error: "skip" leaves bad records out, and lists them in `quarantined` of what is returned.

        Raises:
            InputError: no such shard.
            UsageError: a shard given twice, or an option that cannot be.

        Raises on the way:
            InputError: a shard that cannot be read, or changed.
            ShardError, RecordError: the first damaged shard or bad record (on_error="fail"); what comes before its
                batch is given first.
            ModelError, DeviceError: the model broke its contract, or the device failed.
        """
        facts = self.model.facts
        check_whole_number("k", k, 1, facts.labels, f"the labels of {facts.path}")
        if on_error not in get_args(OnError):
            raise UsageError(f"on_error is {on_error!r}", remedy="choose 'fail' or 'skip'")
        given = [paths] if isinstance(paths, str | os.PathLike) else paths
        shards = find_shards([os.fspath(path) for path in given])
        stream = PredictionStream(self.model, shards, k, on_error=on_error)
        return PredictionIterator(stream.from_position(), facts.names)

    def score(self, *, k: int = 10, **features: ArrayLike) -> Predictions:
        """The best `k` labels of n videos: scores float32 (n, k), descending, and labels int64 (n, k).

        Args:
            features: by the name of each of the model's inputs, numbers (n, width).

        Raises:
            UsageError: missing or unknown features, other shapes, NaN or infinity, or `k` outside 1 to the labels.
            ModelError, DeviceError: the model broke its contract, or the device failed.
        """
        if unknown := features.keys() - self.model.facts.inputs.keys():
            raise UsageError(f"the model reads {', '.join(self.model.facts.inputs)}, not {sorted(unknown)[0]}")
        arrays = {name: as_features(name, values) for name, values in features.items()}
        for name, values in arrays.items():
            check_finite(name, values)
        return self.model.run(arrays, k)

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self._model is None:
            return "<Scorer, closed>"
        facts = self._model.facts
        return f"<Scorer of {facts.path} on {facts.device}, {facts.labels} labels>"

    def __reduce__(self) -> tuple[Any, ...]:
        facts = self.model.facts
        return _reopened, (os.path.abspath(facts.path), facts.sha256, self._options)


def _reopened(path: str, sha256: str, options: dict[str, Any]) -> Scorer:
    """A pickled scorer. Raises ModelError where another file is there now."""
    scorer = Scorer(path, **options)
    if scorer.model.facts.sha256 != sha256:
        raise ModelError(f"{path} is no longer the model that was pickled", remedy="open it again")
    return scorer
