"""Soft labels on the disk, for later runs on the same videos."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from train import checkpoint
from train.data import Videos
from train.distillation.soft_labels import PASSES, SoftLabels, compute_soft_labels

_FORMAT = 4


def cached_soft_labels(videos: Videos, labels: int, folder: Path | None, at: Callable[[str], None]) -> SoftLabels:
    """`compute_soft_labels`, from a file in `folder` where one was left for the same videos, else left there.

    Raises OutputError when the file cannot be written, ModelError when it is damaged, and what `at` raises.
    """
    if folder is None:
        return compute_soft_labels(videos, labels, at)
    path = _file(videos, labels, folder)
    if not path.exists():
        checkpoint.write(path, vars(compute_soft_labels(videos, labels, at)), {})
    tensors, _ = checkpoint.read(path)
    return SoftLabels(**tensors)


def _file(videos: Videos, labels: int, folder: Path) -> Path:
    """Where in `folder` the soft labels are kept.

    The name has a digest of what they follow from: ids, labels, and enough of the features to tell them apart.
    """
    digest = hashlib.sha256(repr((_FORMAT, PASSES, labels, videos.fingerprint())).encode())
    for values in videos.features:
        digest.update(np.ascontiguousarray(values[:64]).tobytes())
    return folder / f"soft-{digest.hexdigest()[:16]}.safetensors"
