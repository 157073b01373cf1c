"""Soft labels on the disk: computed part by part, each part kept as soon as it is done, for later runs too.

A file is used that is this user's own, and whose tensors are what they must be, to the digest of their bytes; any
other is computed again, which a line says.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from scorer.errors import ModelError
from scorer.outputs.own import open_own
from train import checkpoint
from train.data import Videos
from train.distillation.kernel import CPU
from train.distillation.soft_labels import (
    PASSES,
    AtWork,
    SoftLabels,
    TeacherPart,
    compute_part,
    part_seconds,
    parts_of,
    teacher_device,
    teacher_speed,
)
from train.distillation.tiles import Work
from train.files import remove_file

_FORMAT = 5
_BRIEF = 0.1  # minutes that are not worth a line


def cached_soft_labels(
    videos: Videos,
    labels: int,
    folder: Path | None,
    at: AtWork,
    log: Callable[[str], None] = lambda line: None,
    device: torch.device = CPU,
) -> SoftLabels:
    """The videos' soft labels, from a file in `folder` where one was left for the same videos, else left there.

    They are computed on `device`, or on the CPU where that has no room. `log` gets a line for a file there that cannot
    be used. Raises OutputError when a file cannot be written, and what `at` raises; the parts that are done are kept.
    """
    soft = SoftLabels.empty(len(videos), labels)
    everything = TeacherPart(0, 1, torch.arange(len(videos)), torch.arange(len(videos)))
    path = folder and folder / f"soft-{_digest(videos, labels)}.safetensors"
    if path and _read(path, soft, everything, labels, log):
        return soft
    parts = parts_of(len(videos), labels)
    left = [part for part in parts if not (path and _read(_part_file(path, part), soft, part, labels, log))]
    _compute(soft, videos, labels, left, path, at, teacher_device(device, len(videos), labels))
    if path:
        _write(path, soft)
        for part in parts:
            remove_file(_part_file(path, part))
    return soft


def describe_cost(videos: Videos, labels: int, folder: Path, device: torch.device = CPU) -> str:
    """What computing the soft labels will take, in words; "" where a file has them already or it takes seconds."""
    if (folder / f"soft-{_digest(videos, labels)}.safetensors").exists():
        return ""
    parts = parts_of(len(videos), labels)
    speed = teacher_speed(teacher_device(device, len(videos), labels))
    minutes = part_seconds(parts[0], videos, labels, speed) / 60
    if len(parts) == 1 and minutes < _BRIEF:
        return ""
    text = f"soft labels of {len(videos):,} videos are computed first, once, on {speed.device}"
    if len(parts) > 1:
        text += f", in {len(parts)} parts, each by a teacher of {len(parts[0].taught):,} videos and kept once done"
    return f"{text}: about {minutes:.1f} minutes{' a part' if len(parts) > 1 else ''}"


def _compute(
    soft: SoftLabels,
    videos: Videos,
    labels: int,
    left: list[TeacherPart],
    path: Path | None,
    at: AtWork,
    device: torch.device,
) -> None:
    """Fill in the parts that are left, each kept in a file of its own where there are several."""
    speed = teacher_speed(device)
    work = Work(sum(part_seconds(part, videos, labels, speed) for part in left), at)
    for part in left:
        work.where = f"part {part.number + 1} of {part.count}, " if part.count > 1 else ""
        compute_part(soft, part, videos, labels, speed, work)
        if path and part.count > 1:
            _write(_part_file(path, part), soft.of(part.own))


def _part_file(path: Path, part: TeacherPart) -> Path:
    return path.with_suffix(f".{part.number + 1}of{part.count}.safetensors")


def _write(path: Path, soft: SoftLabels) -> None:
    tensors = vars(soft)
    checkpoint.write(path, tensors, {"sha256": checkpoint.digest(tensors)})


def _read(path: Path, soft: SoftLabels, part: TeacherPart, labels: int, log: Callable[[str], None]) -> bool:
    """Fill in what the file has of a part's own videos; False where there is none, or none that can be used."""
    try:
        os.close(open_own(path, os.O_RDONLY))
        tensors, metadata = checkpoint.read(path)
        if not _fits(tensors, soft, part, labels) or metadata.get("sha256") != checkpoint.digest(tensors):
            raise ModelError(f"{path}: it does not hold the soft labels that were left there")
    except FileNotFoundError:
        return False
    except OSError as error:
        log(f"{error.strerror}: soft labels are computed again")
        return False
    except ModelError as error:
        log(f"{error.message}: soft labels are computed again")
        return False
    soft.put(part.own, SoftLabels(**tensors))
    return True


def _fits(tensors: dict[str, torch.Tensor], soft: SoftLabels, part: TeacherPart, labels: int) -> bool:
    """Whether names, types, shapes and values are those of soft labels."""
    expected = {name: (tensor.dtype, tensor[:, part.own].shape) for name, tensor in vars(soft).items()}
    if {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()} != expected:
        return False
    ranges = {"others": soft.share.shape[1] - 1, "share": float("inf"), "index": labels - 1, "weight": 1}
    return all(_within(tensors[name], most) for name, most in ranges.items())


def _within(tensor: torch.Tensor, most: float) -> bool:
    if not tensor.numel():
        return True
    return bool(tensor.isfinite().all()) and tensor.min().item() >= 0 and tensor.max().item() <= most


def _digest(videos: Videos, labels: int) -> str:
    """Of what soft labels follow from: ids, labels, and enough of the features to tell them apart."""
    digest = hashlib.sha256(repr((_FORMAT, PASSES, labels, videos.fingerprint())).encode())
    for values in videos.features:
        digest.update(np.ascontiguousarray(values[:64]).tobytes())
    return digest.hexdigest()[:16]
