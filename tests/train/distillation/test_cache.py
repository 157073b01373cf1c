"""Soft labels on the disk: which are used again, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scorer.errors import ModelError
from tests.train.shards import LABELS, videos
from train.distillation import cache
from train.distillation.cache import cached_soft_labels


def never(step: str) -> None:
    pass


def test_cached_soft_labels_are_read_and_not_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cached_soft_labels(videos(50), LABELS, tmp_path, never)
    monkeypatch.setattr(cache, "compute_soft_labels", lambda *_: pytest.fail("computed again"))
    again = cached_soft_labels(videos(50), LABELS, tmp_path, never)
    assert torch.equal(first.weight, again.weight)
    assert torch.equal(first.index, again.index)


def test_other_videos_have_other_soft_labels(tmp_path: Path) -> None:
    changed = videos(50)
    changed.features[0][3] += 1
    for made in (videos(50), videos(50, seed=1), changed):
        cached_soft_labels(made, LABELS, tmp_path, never)
    assert len(list(tmp_path.iterdir())) == 3


def test_damaged_soft_labels_are_named(tmp_path: Path) -> None:
    cached_soft_labels(videos(50), LABELS, tmp_path, never)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"damaged")
    with pytest.raises(ModelError, match=path.name):
        cached_soft_labels(videos(50), LABELS, tmp_path, never)
