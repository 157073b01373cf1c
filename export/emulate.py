"""fp16 as a GPU computes it, emulated by NumPy: a CPU runs fp16 files in float32, which neither rounds nor overflows.

Each operator's weights and inputs are half-precision numbers; it computes in float32, as tensor cores accumulate
products, and rounds its result to half precision. An LSTM of several steps is rounded after its last step alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from export.evaluate import walk
from export.graph import Graph, Operator
from scorer.errors import GateError
from scorer.model.predictor import DEFAULT_K, Predictions

_LARGEST = float(np.finfo(np.float16).max)


class EmulatedFp16:
    """A graph of export/precision.py's `to_fp16` as something that predicts."""

    def __init__(self, graph: Graph) -> None:
        self._half = graph.half_precision()
        self._graph = graph.with_ops({name: _rounded(graph.ops[name]) for name in self._half})

    def run(self, features: Mapping[str, NDArray[np.float32]], k: int = DEFAULT_K) -> Predictions:
        """The `k` best labels of n videos. Raises GateError where a result does not fit into half precision."""
        probabilities = self.probabilities(features)
        labels = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
        return Predictions(np.take_along_axis(probabilities, labels, axis=1), labels)

    def probabilities(self, features: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Probabilities (n, labels). Raises GateError where a result does not fit into half precision."""
        with np.errstate(over="ignore"):
            results = walk(self._graph, features, np.float32, self._round)
            (logits,) = (result for name, result in results if name == self._graph.output)
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)

    def _round(self, name: str, result: NDArray) -> NDArray:
        if name not in self._half:
            return result
        rounded = result.astype(np.float16).astype(np.float32)
        wrong = ~np.isfinite(rounded)
        if wrong.any():
            largest = float(np.abs(result[wrong]).max())
            reason = f"{int(wrong.sum()):,} of {rounded.size:,} values of {name} overflow, {largest:,.0f} for one"
            raise GateError(f"in fp16 {reason}: it holds {_LARGEST:,.0f}", remedy="no model was written")
        return rounded


def _rounded(op: Operator) -> Operator:
    """With weights in half precision, as float32."""
    return replace(op, values={key: value.astype(np.float16).astype(np.float32) for key, value in op.values.items()})
