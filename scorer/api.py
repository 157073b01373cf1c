"""The scorer for Python programs: `from yt8m import Scorer`."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scorer.errors import ModelError, UsageError
from scorer.inputs.batching import Quarantined
from scorer.inputs.columns import check_columns
from scorer.inputs.discover import find_shards
from scorer.inputs.records import Level
from scorer.inputs.source import Source
from scorer.model.arguments import as_features, check_finite, check_whole_number
from scorer.model.find import open_model
from scorer.model.model import Model
from scorer.model.predictor import Embeddings, Predictions, require_embeddings
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


@dataclass(frozen=True, eq=False)
class Embedding:
    """What the model's last layer reads of one video. id: as the record has it. values: float32 (width,)."""

    id: str
    values: NDArray[np.float32]


T = TypeVar("T")
Paths: TypeAlias = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class VideoIterator(Iterator[T], Generic[T]):
    """What a model gives of each video, in order, made ahead in other threads, which end with it or when it is closed.

    quarantined: the bad records before and among those given so far, a few batches ahead of them (on_error="skip").
    """

    def __init__(self, predicted: Generator[Chunk], videos_of: Callable[[Chunk], Iterable[T]]) -> None:
        self.quarantined: list[Quarantined] = []
        self._videos = _videos(predicted, videos_of, self.quarantined)

    def __next__(self) -> T:
        return next(self._videos)

    def close(self) -> None:
        """End the threads; there are no more videos."""
        self._videos.close()

    def __enter__(self) -> VideoIterator[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _videos(
    predicted: Generator[Chunk], videos_of: Callable[[Chunk], Iterable[T]], quarantined: list[Quarantined]
) -> Generator[T]:
    with closing(predicted):
        for chunk in predicted:
            quarantined += chunk.quarantined
            yield from videos_of(chunk)


def _predictions(chunk: Chunk, names: Sequence[str] | None) -> Iterator[Prediction]:
    for id, labels, scores in zip(chunk.ids.split(), chunk.labels.tolist(), chunk.scores.tolist(), strict=True):
        named = tuple(names[label] for label in labels) if names else None
        yield Prediction(id.decode(), tuple(labels), tuple(scores), named)


def _embeddings(chunk: Chunk) -> Iterator[Embedding]:
    rows: Iterable[NDArray[np.float32]] = () if chunk.embeddings is None else chunk.embeddings
    for id, values in zip(chunk.ids.split(), rows, strict=True):
        yield Embedding(id.decode(), values.copy())  # a view would keep the whole chunk


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
        paths: Paths,
        *,
        k: int = 10,
        on_error: OnError = "fail",
        level: Level = "auto",
        segments: bool = False,
        columns: Mapping[str, str] | None = None,
        allow_empty: bool = False,
    ) -> VideoIterator[Prediction]:
        """The predictions of every video in the shards `paths` (files, patterns or folders), in order.

        Shards are read while the model works; memory does not grow with them. Closing what is returned ends that.

        Args:
            on_error: "skip" leaves bad records out, and lists them in `quarantined` of what is returned.
            level: "video" reads the records' own features, "frame" the means of their frames, "auto" what they have,
                the means first.
            segments: give each labelled segment's frames in the place of its record, with the id "id:start".
            columns: of Parquet and Arrow files, feature -> column where its name is another.
            allow_empty: a shard of 0 bytes has no records; it is damaged else.

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
        found = _shards(paths, allow_empty)
        options = _stream_options(self.model, on_error, level, segments, columns)
        stream = PredictionStream(self.model, found, k, **options)
        return VideoIterator(stream.from_position(), partial(_predictions, names=facts.names))

    def embed(
        self,
        paths: Paths,
        *,
        on_error: OnError = "fail",
        level: Level = "auto",
        segments: bool = False,
        columns: Mapping[str, str] | None = None,
        allow_empty: bool = False,
    ) -> VideoIterator[Embedding]:
        """What the model's last layer reads of every video in the shards `paths`, in order: as `predict` in all else.

        Raises ModelError also where the model gives no embeddings.
        """
        require_embeddings(self.model.facts)
        found = _shards(paths, allow_empty)
        options = _stream_options(self.model, on_error, level, segments, columns)
        stream = PredictionStream(self.model, found, 1, embeddings=True, **options)
        return VideoIterator(stream.from_position(), _embeddings)

    def embed_arrays(self, **features: ArrayLike) -> Embeddings:
        """What the model's last layer reads of n videos, float32 (n, width): as `score` in all else.

        Raises ModelError also where the model gives no embeddings.
        """
        _, embeddings = self.model.embed(self._checked(features), 1)
        return embeddings

    def score(self, *, k: int = 10, **features: ArrayLike) -> Predictions:
        """The best `k` labels of n videos: scores float32 (n, k), descending, and labels int64 (n, k).

        Args:
            features: by the name of each of the model's inputs, numbers (n, width).

        Raises:
            UsageError: missing or unknown features, other shapes, NaN or infinity, or `k` outside 1 to the labels.
            ModelError, DeviceError: the model broke its contract, or the device failed.
        """
        return self.model.run(self._checked(features), k)

    def _checked(self, features: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
        """`features` as arrays of finite numbers; `Model` checks their shapes. Raises UsageError."""
        if unknown := features.keys() - self.model.facts.inputs.keys():
            raise UsageError(f"the model reads {', '.join(self.model.facts.inputs)}, not {sorted(unknown)[0]}")
        arrays = {name: as_features(name, values) for name, values in features.items()}
        for name, values in arrays.items():
            check_finite(name, values)
        return arrays

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


def _shards(paths: Paths, allow_empty: bool) -> list[Source]:
    given = [paths] if isinstance(paths, str | os.PathLike) else paths
    return find_shards([os.fspath(path) for path in given], allow_empty=allow_empty)


def _stream_options(
    model: Model, on_error: OnError, level: Level, segments: bool, columns: Mapping[str, str] | None
) -> dict[str, Any]:
    """Those of `PredictionStream`. Raises UsageError for what cannot be."""
    if on_error not in get_args(OnError):
        raise UsageError(f"on_error is {on_error!r}", remedy="choose 'fail' or 'skip'")
    if level not in ("auto", "video", "frame"):
        raise UsageError(f"level is {level!r}", remedy="choose 'auto', 'video' or 'frame'")
    if segments and level != "auto":
        raise UsageError("segments are frames, whatever the level", remedy="leave one of the two out")
    check_columns(columns or {}, model.facts.inputs)
    return {"on_error": on_error, "level": "segment" if segments else level, "columns": columns}


def _reopened(path: str, sha256: str, options: dict[str, Any]) -> Scorer:
    """A pickled scorer. Raises ModelError where another file is there now."""
    scorer = Scorer(path, **options)
    if scorer.model.facts.sha256 != sha256:
        raise ModelError(f"{path} is no longer the model that was pickled", remedy="open it again")
    return scorer
