"""Checkpoints, what a run leaves, caches of soft labels and of decoded videos: what `train` and `export` read."""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import torch

from tests.fuzz.readers.harness import FuzzedReader
from tests.fuzz.readers.mutations import NUMBERS, changed_bytes, changed_json, dumped
from tests.train.shards import INPUTS, LABELS, recipe, videos
from train import cache as decoded
from train import checkpoint
from train.devices import choose_device
from train.distillation import cache
from train.distillation.soft_labels import SoftLabels
from train.distributed import World
from train.registry import build
from train.runner import _look
from train.training import Data, Training

_KEPT = 512
"""MiB: safetensors 0.8.0 keeps about 70 bytes for each tensor that is read, whatever is in it."""
_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "X")


def make_checkpoint(folder: Path) -> FuzzedReader:
    """As `export` reads it: whole, and to a network."""
    path = folder / checkpoint.BEST
    originals = [_checkpoint(path, name) for name in ("bilstm", "lstm", "dmrnet")]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        model = checkpoint.load(path).model()
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())

    return FuzzedReader(lambda random: changed_file(random, random.choice(originals), originals), read, 64, _KEPT)


def _checkpoint(path: Path, name: str) -> bytes:
    torch.manual_seed(0)
    model, config = recipe(name)
    checkpoint.save(path, checkpoint.Checkpoint(model, build(model).state_dict(), {"MAP@10": 0.5}), config)
    return path.read_bytes()


def make_run(folder: Path) -> FuzzedReader:
    """A run's folder, of which one file is another: looked at and resumed."""
    training, place = _training(folder), folder / "runs" / "lstm"
    files = {name: (place / name).read_bytes() for name in (checkpoint.BEST, checkpoint.LAST, "metrics.jsonl")}
    options = argparse.Namespace(runs=folder / "runs", restart=False, resume=True)

    def make(random: Random) -> bytes:
        name = random.choice([*files])
        if name.endswith(".jsonl"):
            changed = [dumped(random, changed_json(random, json.loads(line))) for line in files[name].splitlines()]
            data = changed_bytes(random, files[name]) if random.random() < 0.3 else b"\n".join(changed)
        else:
            data = changed_file(random, files[name], [*files.values()])
        return name.encode() + b"\n" + data

    def read(data: bytes) -> None:
        _lay_out(place, files, data)
        _look(options, "lstm", {})
        training.state.restore(*checkpoint.read(place / checkpoint.LAST))
        (place / checkpoint.LAST).unlink()
        _look(options, "lstm", {})

    return FuzzedReader(make, read, 64, _KEPT)


def _training(folder: Path) -> Training:
    """A run of one epoch, which has left its files."""
    model, config = recipe("lstm", epochs=1, soft=False)
    training = Training(model, config, Data(videos(40), videos(10, 1)), choose_device("cpu", 0), World())
    (folder / "runs" / "lstm").mkdir(parents=True)
    training.run(folder / "runs" / "lstm", _Nobody(), lambda: False)
    return training


class _Nobody:
    def step(self, done: int, steps: int) -> None: ...

    def epoch(self, record: Mapping[str, float]) -> None: ...

    def log(self, line: str) -> None: ...


def make_soft_labels(folder: Path) -> FuzzedReader:
    """A cache of soft labels: used where it can be, else made again."""
    few = videos(12)
    whole = cache.cached_soft_labels(few, LABELS, folder, _never)
    (path,) = folder.iterdir()
    original = path.read_bytes()

    def make(random: Random) -> bytes:
        if random.random() < 0.5:
            return changed_file(random, original)
        tensors = {name: _changed_values(random, tensor) for name, tensor in vars(whole).items()}
        checkpoint.write(path, tensors, {"sha256": checkpoint.digest(tensors)})  # forged, and whole
        return path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with mock.patch.object(cache, "_compute"):
            soft = cache.cached_soft_labels(few, LABELS, folder, _never)
        _check(soft, len(few))

    return FuzzedReader(make, read, 64, _KEPT)


def _never(share: float, what: str) -> None:
    pass


def _changed_values(random: Random, tensor: torch.Tensor) -> torch.Tensor:
    if random.random() < 0.5:
        return tensor
    changed = tensor.clone()
    place = random.randrange(changed.numel())
    changed.view(-1)[place] = random.choice((-1, 0, 1, 2, 7, 30000, float("nan") if changed.is_floating_point() else 9))
    return random.choice((changed, changed[:, :-1].contiguous(), changed.float(), changed.to(torch.int64)))


def _check(soft: SoftLabels, videos: int) -> None:
    assert 0 <= int(soft.others.min()) <= int(soft.others.max()) < videos
    assert 0 <= int(soft.index.min()) <= int(soft.index.max()) < LABELS
    assert bool(((soft.weight >= 0) & (soft.weight <= 1)).all())
    assert bool(soft.share.isfinite().all())


def _lay_out(folder: Path, files: Mapping[str, bytes], data: bytes) -> None:
    """Write `files`, of which the one that `data` begins with the name of has the rest of that in its place."""
    name, _, content = data.partition(b"\n")
    for known, whole in files.items():
        (folder / known).unlink(missing_ok=True)  # arrays may be mapped still
        (folder / known).write_bytes(content if known == name.decode() else whole)


def make_decoded_cache(folder: Path) -> FuzzedReader:
    """A cache of decoded videos, of which one file is another."""
    few = videos(20)
    widths = [width for _, width in INPUTS]
    arrays = decoded.make_arrays(folder, [(24, width) for width in widths])
    for to, values in zip(arrays, few.features, strict=True):
        to[: len(few)] = values
        to.flush()  # type: ignore[attr-defined]
    decoded.write_rest(folder, [array[: len(few)] for array in arrays], few.labels, few.ids)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}

    def make(random: Random) -> bytes:
        name = random.choice([*files])
        if name.endswith(".json"):
            data = dumped(random, changed_json(random, json.loads(files[name])))
        elif name.endswith(".npy") and random.random() < 0.6:
            data = _changed_npy(random, files[name])
        else:
            data = changed_bytes(random, files[name], [*files.values()])
        return name.encode() + b"\n" + data

    def read(data: bytes) -> None:
        _lay_out(folder, files, data)
        features, labels, ids = decoded.read(folder, widths, LABELS)
        assert ids == few.ids
        assert np.array_equal(labels, few.labels)
        assert all(np.array_equal(*pair) for pair in zip(features, few.features, strict=True))

    return FuzzedReader(make, read, 64, _KEPT)


def _changed_npy(random: Random, data: bytes) -> bytes:
    """With another header (numpy.lib.format), of the right length."""
    (size,) = struct.unpack_from("<H", data, 8)
    header = data[10 : 10 + size].decode()
    shape = ", ".join(str(random.choice((-1, *NUMBERS))) for _ in range(random.choice((0, 1, 2, 3, 40)))) + ","
    header = random.choice(
        (
            header.replace("(", f"({shape}"),
            header.replace("False", random.choice(("True", "None", "0", "((((("))),
            header.replace("<", random.choice((">", "|", "O", "V8", ""))),
            header.replace("f4", random.choice(("O", "f8", "c8", "U9", "M8"))),
            "(" * random.choice((50, 500, 30_000)),
            changed_bytes(random, header.encode()).decode("latin1"),
        )
    )
    encoded = header.encode("latin1", "replace")[:65_000]
    return data[:8] + struct.pack("<H", len(encoded)) + encoded + data[10 + size :]


def changed_file(random: Random, data: bytes, others: list[bytes] | None = None) -> bytes:
    """A safetensors file changed in its header's JSON, texts of JSON within included, or in its bytes."""
    if random.random() < 0.3:
        return changed_bytes(random, data, others or [data])
    (size,) = struct.unpack_from("<Q", data)
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    if random.random() < 0.5:
        header["__metadata__"].pop("sha256", None)
    what = random.random()
    if what < 0.55:
        header["__metadata__"] = changed_json(random, header["__metadata__"])
    elif what < 0.75:
        tensor = header[random.choice([name for name in header if name != "__metadata__"])]
        tensor[random.choice(("dtype", "dtype", "shape"))] = random.choice((*_DTYPES, [random.choice(NUMBERS)] * 2, []))
    else:
        header = changed_json(random, header)
    text = dumped(random, header)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]
