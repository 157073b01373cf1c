"""The predictor that is one ONNX file.

    model = Model.open("models/bilstm.onnx", device="auto")
    scores, labels = model.run({"mean_rgb": rgb, "mean_audio": audio}, k=10)

docs/formats.md has the contract of the file; all of it is checked when the file is opened, before any shard is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scorer.errors import ModelError, UsageError
from scorer.kernels import loops
from scorer.model.arguments import as_features, check_whole_number
from scorer.model.contract import all_finite
from scorer.model.devices import CUDA
from scorer.model.onnx_file import ModelFile
from scorer.model.placement import DeviceOptions, place
from scorer.model.predictor import DEFAULT_K, Embeddings, Features, ModelFacts, Predictions, require_embeddings
from scorer.model.runtime import BOTH_INSTALLED, import_runtime, installed_runtimes
from scorer.model.slots import Outcome, SlotPool

_LOOKED_AT = 4  # videos of a batch, for values that training did not have


class Model:
    """An open ONNX file: a `scorer.model.predictor.Predictor`."""

    def __init__(self, facts: ModelFacts, pool: SlotPool) -> None:
        """Use `Model.open`."""
        self.facts = facts
        self._pool = pool
        self._likely = {name: _widened(*pair) for name, pair in facts.ranges.items()}  # where nothing was strange yet
        self._notes = [BOTH_INSTALLED] if len(installed_runtimes()) > 1 else []
        if facts.provider == CUDA and facts.metadata.get("yt8m.precision") == "int8":
            self._notes.append("CUDA computes this int8 model in float32; one of fp16 is faster there")

    @classmethod
    def open(
        cls,
        path: str,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        tf32: bool = False,
        gpu_memory: int | None = None,
        provider: str | None = None,
        cuda_graphs: bool = False,
    ) -> Model:
        """Open the ONNX file at `path`; the options are those of `scorer.model.placement.DeviceOptions`.

        Raises:
            ModelError: the file is absent, damaged or does not follow the contract.
            DeviceError: the device or the runtime is not there, or the model cannot run on it.
            UsageError: no device is called so, or another option is no number that can be.
        """
        with ModelFile(path) as file:
            runtime = import_runtime()
            options = DeviceOptions(device, threads, batch_size, tf32, gpu_memory, provider, cuda_graphs)
            placed = place(runtime, file, options)
            file.check_unchanged()
        contract = placed.contract
        facts = ModelFacts(
            path=path,
            sha256=file.sha256,
            inputs=contract.inputs,
            dtype=contract.dtype.__name__,
            labels=contract.labels,
            names=contract.names,
            metadata=contract.metadata,
            runtime=f"onnxruntime {runtime.__version__}{placed.engine}",
            device=placed.device,
            provider=placed.provider,
            reason=placed.reason,
            ranges=contract.ranges,
            embeddings=contract.embeddings,
        )
        return cls(facts, placed.pool)

    @property
    def batch_size(self) -> int:
        """Videos that run at once in a slot."""
        return self._pool.batch_size

    @property
    def slots(self) -> int:
        """Batches that run at once."""
        return len(self._pool)

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know about the run, such as smaller batches for want of memory."""
        return [*self._notes, *self._pool.notes]

    def buffer(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """An array of any values, to put features for `run` into: on a GPU page-locked, so that they are uploaded from
        there and copied nowhere before. It may be used again once `run` has returned. Raises MemoryError.
        """
        return self._pool.buffer(shape)

    def run(self, features: Features, k: int = DEFAULT_K) -> Predictions:
        """The `k` best labels of n videos: scores float32 (n, k), descending, and labels int64 (n, k).

        A video's scores depend on its features alone, neither on n nor on its neighbours. More videos than
        `batch_size` are spread over the slots.

        Args:
            features: per input a float32 array (n, width), finite.
            k: 1 to `facts.labels`.

        Raises:
            UsageError: other features, shapes or k.
            ModelError: the predictions break the model's contract.
            DeviceError: the device failed, or has not enough memory for one video.
        """
        predictions, _ = self._run(features, k, with_embeddings=False)
        return predictions

    def embed(self, features: Features, k: int = DEFAULT_K) -> tuple[Predictions, Embeddings]:
        """As `run`, and the videos' embeddings with that, float32 (n, `facts.embeddings`), finite.

        Raises ModelError also where the model gives none.
        """
        require_embeddings(self.facts)
        predictions, embeddings = self._run(features, k, with_embeddings=True)
        if embeddings is None:
            return predictions, np.empty((0, self.facts.embeddings), np.float32)
        if not all_finite(embeddings):
            raise ModelError(f"{self.facts.path} gave an embedding that is not finite")
        return predictions, embeddings

    def _run(self, features: Features, k: int, *, with_embeddings: bool) -> Outcome:
        arrays, videos = self._checked(features, k)
        if videos == 0:
            return Predictions(np.empty((0, k), np.float32), np.empty((0, k), np.int64)), None
        self._note_strange(arrays)
        predictions, embeddings = self._pool.run(arrays, videos, k, with_embeddings)
        row = loops.active.check_predictions(predictions.labels, predictions.scores, self.facts.labels)
        if row >= 0:
            raise ModelError(f"{self.facts.path} {_what_is_wrong(predictions, row, self.facts.labels)}")
        return predictions, embeddings

    def _note_strange(self, arrays: Features) -> None:
        """Note once for each input that it holds values far outside those of training: a look at a few videos."""
        for name, (low, high) in list(self._likely.items()):
            values = arrays[name][:_LOOKED_AT]
            least, most = float(values.min()), float(values.max())
            if (least < low or most > high) and self._likely.pop(name, None) is not None:
                trained = "from {:.3g} to {:.3g}".format(*self.facts.ranges[name])
                seen = f"{name} has values from {least:.3g} to {most:.3g}"
                self._notes.append(f"{seen}, training had them {trained}: scores may mean nothing")

    def _checked(self, features: Features, k: int) -> tuple[Features, int]:
        facts = self.facts
        check_whole_number("k", k, 1, facts.labels, f"the labels of {facts.path}")
        if missing := [name for name in facts.inputs if name not in features]:
            raise UsageError(f"the model reads {', '.join(facts.inputs)}, and {missing[0]} was not given")
        arrays = {name: as_features(name, features[name]) for name in facts.inputs}
        for name, width in facts.inputs.items():
            if arrays[name].ndim != 2 or arrays[name].shape[1] != width:
                shape = f"{name} has shape {arrays[name].shape}, the model reads (videos, {width})"
                raise UsageError(shape, remedy="give a row per video")
        counts = {name: len(values) for name, values in arrays.items()}
        if len(set(counts.values())) > 1:
            raise UsageError("rows are videos, and " + ", ".join(f"{name} has {n}" for name, n in counts.items()))
        return arrays, next(iter(counts.values()))


def _what_is_wrong(predictions: Predictions, row: int, labels: int) -> str:
    """In words, of a row that breaks the contract."""
    scores, found = predictions.scores[row], predictions.labels[row]
    for label in found[(found < 0) | (found >= labels)]:
        return f"gave the label {label}, which is outside 0 to {labels - 1}"
    for score in scores[~((scores >= 0) & (scores <= 1))]:
        return f"gave the score {score}, which is outside [0, 1]"
    if len(np.unique(found)) < len(found):
        return "gave a label twice for one video"
    return "gave scores that do not descend"


def _widened(low: float, high: float) -> tuple[float, float]:
    """A range three times as wide."""
    return low - (high - low), high + (high - low)
