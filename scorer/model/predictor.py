"""What a job needs of a model: features in, the best labels out, and the facts that decide the bytes of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import Hint, ModelError

DEFAULT_K = 10

Features: TypeAlias = Mapping[str, NDArray[Any]]
"""Per input an array (n, width)."""


class Predictions(NamedTuple):
    """The k best labels of n videos, best first: scores float32 (n, k), labels int64 (n, k)."""

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]


Embeddings: TypeAlias = NDArray[np.float32]
"""Of n videos, (n, width): what the model's last Dense layer, which gives a number for each label, reads of each."""


@dataclass(frozen=True)
class ModelFacts:
    """What an open model is.

    path, sha256: the file. inputs: TFRecord feature -> width. dtype: the type of the file's own inputs.
    ranges: the least and the greatest value of an input's features in training, if the file has them.
    labels: how many there are. names: theirs, if the file has them. metadata: every entry of the file.
    runtime: name and version of the engine, and what else decides the bits of a score.
    device: "cpu", "cuda:0" or "cuda:0,1". provider: the engine's name for it. reason: why this device.
    embeddings: how wide those are that it gives; 0 where it gives none.
    """

    path: str
    sha256: str
    inputs: Mapping[str, int]
    dtype: str
    labels: int
    names: Sequence[str] | None
    metadata: Mapping[str, str]
    runtime: str
    device: str
    provider: str
    reason: str
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    embeddings: int = 0


def require_embeddings(facts: ModelFacts) -> None:
    """Raise ModelError where the model gives no embeddings."""
    if not facts.embeddings:
        raise ModelError(
            f"{facts.path} gives no embeddings", remedy="export it with embeddings", hints=(Hint.EMBEDDINGS,)
        )


class Predictor(Protocol):
    """An open model. `run` may be called from several threads; as many calls as `slots` keep the device busy."""

    @property
    def facts(self) -> ModelFacts: ...

    @property
    def batch_size(self) -> int:
        """Videos that run at once in a slot; it may shrink during a job."""

    @property
    def slots(self) -> int:
        """Batches that run at once."""

    @property
    def notes(self) -> Sequence[str]:
        """What a user should know about the run, such as smaller batches for want of memory."""

    def buffer(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """An array of any values, to put features for `run` into: in memory that the device reads without a copy, if
        there is such. `run` takes every other array too. Raises MemoryError.
        """

    def run(self, features: Features, k: int = DEFAULT_K) -> Predictions:
        """The `k` best labels of n videos, whose scores depend on neither n nor each other.

        Args:
            features: per input finite float32 (n, width).
            k: 1 to `facts.labels`.

        Raises:
            UsageError: other features, shapes or k.
            ModelError: the predictions break the model's contract.
            DeviceError: the device failed.
        """

    def embed(self, features: Features, k: int = DEFAULT_K) -> tuple[Predictions, Embeddings]:
        """As `run`, and the videos' embeddings with that, float32 (n, `facts.embeddings`), finite.

        Raises ModelError also where the model gives none.
        """
