"""Checkpoints: what was saved is read, what is damaged is refused, and a kill leaves the last good one."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scorer.errors import ModelError, OutputError
from tests.shards import flip_bit
from tests.train.shards import recipe
from train import checkpoint
from train.checkpoint import Checkpoint
from train.data import Videos
from train.facts import TrainedOn, trained_on
from train.registry import build

FACTS = TrainedOn(1000, {"mean_rgb": (-1.5, 2.0), "mean_audio": (-1.0, 1.25)})
METRICS = {"MAP@10": 0.5, "GAP@20": 0.4, "Hit@1": 0.3, "PERR": 0.2}


def saved(path: Path) -> Path:
    model, config = recipe("bilstm")
    checkpoint.save(path, Checkpoint(model, build(model).state_dict(), METRICS, FACTS), config)
    return path


def test_a_model_survives(tmp_path: Path) -> None:
    model, config = recipe("dmrnet")
    network = build(model).eval()
    checkpoint.save(tmp_path / "best.safetensors", Checkpoint(model, network.state_dict(), METRICS, FACTS), config)
    loaded = checkpoint.load(tmp_path / "best.safetensors")
    inputs = torch.randn(3, 8), torch.randn(3, 4)
    assert (loaded.config, loaded.metrics, loaded.trained_on) == (model, METRICS, FACTS)
    assert torch.equal(loaded.model()(*inputs), network(*inputs))
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


def test_others_may_read_it(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        assert saved(tmp_path / "best.safetensors").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(umask)


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_half_a_file_is_damaged(size: int, tmp_path: Path) -> None:
    path = saved(tmp_path / "best.safetensors")
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(ModelError, match="damaged"):
        checkpoint.load(path)


def test_garbage_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    path.write_bytes(random.Random(0).randbytes(1000))
    with pytest.raises(ModelError, match="damaged"):
        checkpoint.load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "best.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "2"}, "format 2"),
        ({"config": "{}"}, "configuration"),
        ({"metrics": "[]"}, "no metrics"),
        ({"config": recipe("lstm")[0].to_json()}, "do not fit"),
    ],
)
def test_another_contract_is_refused(change: dict[str, str], message: str, tmp_path: Path) -> None:
    tensors, metadata = checkpoint.read(saved(tmp_path / "best.safetensors"))
    save_file(tensors, tmp_path / "other.safetensors", metadata | change)
    with pytest.raises(ModelError, match=message):
        checkpoint.load(tmp_path / "other.safetensors")


def test_a_weight_that_is_not_finite_is_named(tmp_path: Path) -> None:
    model, config = recipe("bilstm")
    state = build(model).state_dict()
    state["dense.weight"][0, 0] = math.nan
    checkpoint.save(tmp_path / "best.safetensors", Checkpoint(model, state, METRICS), config)
    with pytest.raises(ModelError, match=r"dense\.weight holds values that are not finite"):
        checkpoint.load(tmp_path / "best.safetensors")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened(dtype: torch.dtype, tmp_path: Path) -> None:
    model, config = recipe("bilstm")
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in build(model).state_dict().items()}
    checkpoint.save(tmp_path / "best.safetensors", Checkpoint(model, state, METRICS), config)
    loaded = checkpoint.load(tmp_path / "best.safetensors").state
    assert all(tensor.dtype == torch.float32 for tensor in loaded.values() if tensor.is_floating_point())
    assert torch.equal(loaded["dense.weight"], state["dense.weight"].float())


def test_a_flipped_bit_of_a_weight_is_damage_unless_no_sha256_says_so(tmp_path: Path) -> None:
    path = saved(tmp_path / "best.safetensors")
    tensors, metadata = checkpoint.read(path)
    flip_bit(str(path), path.stat().st_size - 4)
    with pytest.raises(ModelError, match="is damaged"):
        checkpoint.load(path)
    del metadata["sha256"]
    save_file(tensors, path, metadata)
    assert torch.equal(checkpoint.load(path).state["dense.weight"], tensors["dense.weight"])


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        saved(tmp_path / "absent" / "best.safetensors")


def test_a_limit_on_the_size_of_files_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """The kernel's own refusal, as of a full disk."""
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, {"a": torch.ones(10)}, {})
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            checkpoint.write(path, {"a": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(checkpoint.read(path)[0]["a"], torch.ones(10))
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_saving_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    """A child saves without end and is killed at a random moment: the file is whole each time, and nothing piles up."""
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, {"a": torch.zeros(100_000)}, {"n": "0"})
    torch.set_num_threads(1)  # the child inherits no other threads, and would wait for them
    moments, saves = random.Random(0), 0
    for kills in range(300):
        if kills >= 20 and saves >= 5:
            break
        child = os.fork()
        if not child:
            _save_without_end(path)
        time.sleep(0.1 * moments.random())
        os.kill(child, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        tensors, metadata = checkpoint.read(path)
        assert torch.equal(tensors["a"], torch.full((100_000,), float(metadata["n"])))
        assert len(list(tmp_path.iterdir())) <= 2
        saves = int(metadata["n"])
    assert saves >= 5
    checkpoint.write(path, tensors, metadata)
    assert list(tmp_path.iterdir()) == [path]


def _save_without_end(path: Path) -> None:
    try:
        n = int(checkpoint.metadata(path)["n"])
        while True:
            n += 1
            checkpoint.write(path, {"a": torch.full((100_000,), float(n))}, {"n": str(n)})
    finally:
        os._exit(1)


def test_finished() -> None:
    train = json.dumps({"epochs": 3})
    assert checkpoint.finished({"train": train, "progress": json.dumps({"epoch": 3})})
    assert not checkpoint.finished({"train": train, "progress": json.dumps({"epoch": 2})})
    with pytest.raises(ModelError):
        checkpoint.finished({"train": train, "progress": "{"})


def test_what_a_model_was_trained_on() -> None:
    rgb = np.array([[0.0, -1.2341], [5.5551, 0.5]], np.float32)
    videos = Videos([rgb, np.zeros((2, 3), np.float32)], np.zeros((2, 1), np.int32), [b"a", b"b"])
    facts = trained_on(videos, [("mean_rgb", 2), ("mean_audio", 3)])
    assert facts == TrainedOn(2, {"mean_rgb": (-1.24, 5.56), "mean_audio": (0.0, 0.0)})
    assert TrainedOn.from_json(facts.to_json()) == facts


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"videos": 1}', '{"videos": 1, "ranges": {"x": [1]}}',
             '{"videos": 1, "ranges": {"x": [NaN, 1]}}', "[" * 100_000],
)  # fmt: skip
def test_what_is_no_description_of_videos(text: str) -> None:
    with pytest.raises(ModelError, match="training videos"):
        TrainedOn.from_json(text)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("key", "text"),
    [
        *((key, text) for key in ("config", "metrics", "trained_on") for text in ("", "[]", DEEP, '"x"', "{")),
        ("config", '{"name": "bilstm", "inputs": [["\\ud800", 8]]}'),
        ("config", '{"name": "bilstm", "inputs": "x"}'),
        ("config", '{"name": "../bilstm"}'),
        ("config", '{"name": "bilstm", "inputs": [["rgb", 1099511627776]]}'),
        ("config", '{"name": "bilstm", "labels": 4611686018427387904}'),
        *(("config", f'{{"name": "bilstm", "{name}": 1{"0" * 400}}}') for name in ("leaky_slope", "bn_eps")),
        ("metrics", '{"MAP@10": 1e999}'),
        ("metrics", '{"MAP@10": null}'),
    ],
    ids=lambda value: value[:20],
)
def test_hostile_metadata_is_one_line_that_names_the_file(key: str, text: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "best.safetensors")
    tensors, metadata = checkpoint.read(path)
    save_file(tensors, path, {**metadata, key: text})
    with pytest.raises(ModelError, match=r"best\.safetensors: .*train again"):
        checkpoint.load(path)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "int32", "bool"])
def test_weights_of_other_types_are_refused(kind: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "best.safetensors")
    tensors, metadata = checkpoint.read(path)
    del metadata["sha256"]
    changed = {n: t.to(getattr(torch, kind)) if t.is_floating_point() else t for n, t in tensors.items()}
    save_file(changed, path, metadata)
    with pytest.raises(ModelError, match=r"best\.safetensors: .*(no type of weights|do not fit)"):
        checkpoint.load(path)


def test_a_counter_of_another_type_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "best.safetensors")
    tensors, metadata = checkpoint.read(path)
    del metadata["sha256"]
    save_file({n: t if t.is_floating_point() else t.to(torch.complex64) for n, t in tensors.items()}, path, metadata)
    with pytest.raises(ModelError, match="do not fit"):
        checkpoint.load(path)
