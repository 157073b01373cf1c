"""Execution providers of ONNX Runtime other than the CPU's and CUDA's: OpenVINO, DirectML, MIGraphX, CoreML.

They promise less. Every batch runs at one size, as on CUDA, because some compile the model for each; equal scores are
put in order here; one batch runs at a time, because not all of them may be called from several threads. And `k` becomes
an input of the model: OpenVINO takes its default for a constant, and gives ten labels whatever it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.inputs.wire import BYTES, field
from scorer.model.contract import Contract, outputs
from scorer.model.predictor import Features, Predictions
from scorer.model.runtime import Session
from scorer.model.slots import Outcome
from scorer.model.ties import SPARE, settle

_GRAPH, _INITIALIZER, _NAME = 7, 5, 8  # fields of ModelProto, GraphProto and TensorProto, messages or text each


class ProviderSlot:
    """The one slot of a session on such a provider."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._padded: dict[str, NDArray[Any]] = {}
        self._columns = self._labels = 0

    def fit(self, contract: Contract, size: int, k: int) -> None:
        """Run once at `size`, for which some providers compile the model. Raises MemoryError."""
        self._labels, self._columns = contract.labels, min(k + SPARE, contract.labels)
        self._padded = {name: np.zeros((size, width), contract.dtype) for name, width in contract.inputs.items()}
        self._ask(self._columns)

    def buffer(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Any array will do."""
        return np.empty(shape, np.float32)

    def run(self, features: Features, k: int, embeddings: bool) -> Outcome:
        """Scores and labels (n, k) of n videos; size and k at most what the slot was fitted for."""
        videos = len(next(iter(features.values())))
        for name, values in features.items():
            self._padded[name][:videos] = values
        found, own = self._ask(self._columns, embeddings)
        best = Predictions(found.scores[:videos], found.labels[:videos])
        settled = settle(best, k, self._labels, lambda: self._ask(self._labels)[0])
        return settled, None if own is None else own[:videos].copy()

    def _ask(self, k: int, embeddings: bool = False) -> Outcome:
        given = {**self._padded, "k": np.array([k], np.int64)}
        scores, labels, *rest = self._session.run(outputs(embeddings), given)
        return Predictions(scores, labels), rest[0] if rest else None


def without_default_k(model: bytes) -> bytes:
    """`model`, the bytes of an ONNX file that was examined, with `k` as an input that has no default."""
    pieces = []
    for number, start, content, end in _fields(model):
        if number == _GRAPH:
            graph = model[content:end]
            kept = b"".join(graph[first:last] for part, first, inner, last in _fields(graph)
                            if not (part == _INITIALIZER and _is_named(graph[inner:last], b"k")))  # fmt: skip
            pieces.append(field(_GRAPH, kept))
        else:
            pieces.append(model[start:end])
    return b"".join(pieces)


def _is_named(tensor: bytes, name: bytes) -> bool:
    return any(number == _NAME and tensor[content:end] == name for number, _, content, end in _fields(tensor))


def _fields(message: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Number, start, start of the content and end of each field."""
    position = 0
    while position < len(message):
        start = position
        key, position = _read_varint(message, position)
        kind = key & 7
        value, after = _read_varint(message, position) if kind in (0, BYTES) else (0, position)
        content = position if kind == 0 else after
        position = {0: after, 1: position + 8, BYTES: after + value, 5: position + 4}[kind]
        yield key >> 3, start, content, position


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
