"""Labels videos with one ONNX file.

from yt8m import Scorer

with Scorer() as scorer:
    for video in scorer.predict(["samples/a.tfrecord"]):
        print(video.id, video.labels[0], video.scores[0])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorer.api import Embedding, Prediction, Scorer

    __version__: str

__all__ = ["Embedding", "Prediction", "Scorer", "__version__"]


def __getattr__(name: str) -> Any:
    """Import NumPy and ONNX Runtime only when they are asked for: the commands' --help needs neither."""
    if name not in __all__:
        raise AttributeError(f"module 'scorer' has no attribute {name!r}")
    if name == "__version__":
        from importlib.metadata import version

        return version("yt8m-edge")
    from scorer import api

    return getattr(api, name)
