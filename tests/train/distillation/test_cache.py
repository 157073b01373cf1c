"""Soft labels on the disk: which are used again, which are computed again, and that parts outlive a stop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.train.shards import LABELS, videos
from train import checkpoint
from train.distillation import cache, soft_labels
from train.distillation.cache import cached_soft_labels, describe_cost
from train.distillation.soft_labels import SoftLabels


def never(share: float, what: str) -> None:
    pass


def computed(folder: Path, seed: int = 0) -> SoftLabels:
    return cached_soft_labels(videos(50, seed), LABELS, folder, never)


def again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many parts are computed in another call."""
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(cache, "compute_part", lambda *given: calls.append(given))
        computed(folder)
    return len(calls)


def test_cached_soft_labels_are_read_and_not_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = computed(tmp_path)
    assert again(tmp_path, monkeypatch) == 0
    second = computed(tmp_path)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.index, second.index)
    assert describe_cost(videos(50), LABELS, tmp_path) == ""


def test_other_videos_have_other_soft_labels(tmp_path: Path) -> None:
    changed = videos(50)
    changed.features[0][3] += 1
    for made in (videos(50), videos(50, seed=1), changed):
        cached_soft_labels(made, LABELS, tmp_path, never)
    assert len(list(tmp_path.iterdir())) == 3


def poisoned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"index": torch.full_like(tensors["index"], 7)}


FAULTS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "a tensor is missing": lambda tensors: {name: tensors[name] for name in tensors if name != "share"},
    "a tensor too many": lambda tensors: tensors | {"more": torch.zeros(1)},
    "another type": lambda tensors: tensors | {"weight": tensors["weight"].float()},
    "another shape": lambda tensors: tensors | {"weight": tensors["weight"][:, :-1].contiguous()},
    "no shape": lambda tensors: tensors | {"weight": torch.zeros((), dtype=torch.float16)},
    "a label that is none": lambda tensors: tensors | {"index": tensors["index"] + LABELS},
    "a negative label": lambda tensors: tensors | {"index": tensors["index"] - LABELS},
    "a video that is none": lambda tensors: tensors | {"others": tensors["others"] + 50},
    "a probability above 1": lambda tensors: tensors | {"weight": tensors["weight"] + 2},
    "no number": lambda tensors: tensors | {"weight": tensors["weight"] * torch.nan},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_ones_are_computed_again(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with a digest that fits."""
    computed(tmp_path)
    (path,) = tmp_path.iterdir()
    tensors = FAULTS[fault](checkpoint.read(path)[0])
    checkpoint.write(path, tensors, {"sha256": checkpoint.digest(tensors)})
    assert again(tmp_path, monkeypatch) == 1


def test_damaged_ones_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed(tmp_path)
    (path,) = tmp_path.iterdir()
    tensors, metadata = checkpoint.read(path)
    checkpoint.write(path, poisoned(tensors), metadata)
    assert again(tmp_path, monkeypatch) == 1
    path.write_bytes(b"damaged")
    assert again(tmp_path, monkeypatch) == 1


def test_a_line_says_why_they_are_computed_again(tmp_path: Path) -> None:
    def lines() -> list[str]:
        found: list[str] = []
        cached_soft_labels(videos(50), LABELS, tmp_path, never, found.append)
        return found

    assert lines() == []
    assert lines() == []
    (path,) = tmp_path.iterdir()
    tensors = poisoned(checkpoint.read(path)[0])
    checkpoint.write(path, tensors, {})
    assert lines() == [f"{path}: it does not hold the soft labels that were left there: soft labels are computed again"]
    path.write_bytes(b"damaged")
    (line,) = lines()
    assert line.startswith(f"{path}")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert lines() == [f"{path} is a symbolic link: soft labels are computed again"]


def test_those_of_somebody_else_are_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("os.geteuid", lambda: 12345)
        assert again(tmp_path, monkeypatch) == 1
    (path,) = tmp_path.iterdir()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert again(tmp_path, monkeypatch) == 1


def test_parts_that_are_done_outlive_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_labels, "MOST_VIDEOS", 20)
    (tmp_path / "whole").mkdir()
    whole = computed(tmp_path / "whole")

    def stop(share: float, what: str) -> None:
        if what.startswith("part 3 of 3, pass 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_soft_labels(videos(50), LABELS, tmp_path, stop)
    assert sorted(path.name.split(".")[1] for path in tmp_path.glob("*.safetensors")) == ["1of3", "2of3"]
    assert "in 3 parts" in describe_cost(videos(50), LABELS, tmp_path)
    begun: list[str] = []
    resumed = cached_soft_labels(videos(50), LABELS, tmp_path, lambda share, what: begun.append(what))
    assert all(what.startswith("part 3 of 3") for what in begun)
    assert all(torch.equal(vars(whole)[name], tensor) for name, tensor in vars(resumed).items())
    assert [path.name.count(".") for path in tmp_path.glob("*.safetensors")] == [1]
