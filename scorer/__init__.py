"""Labels videos with one ONNX file.

from scorer import Scorer

for video in Scorer().predict(["samples/a.tfrecord"]):
    print(video.id, video.labels[0], video.scores[0])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorer.api import Prediction, Scorer

__all__ = ["Prediction", "Scorer"]


def __getattr__(name: str) -> Any:
    """Import NumPy and ONNX Runtime only when they are asked for: the commands' --help needs neither."""
    if name not in __all__:
        raise AttributeError(f"module 'scorer' has no attribute {name!r}")
    from scorer import api

    return getattr(api, name)
