"""Small models with random weights and statistics, for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.shards import example, write_shard
from train.checkpoint import Checkpoint, save
from train.config import ModelConfig, TrainConfig
from train.facts import TrainedOn
from train.layers import Scaling
from train.registry import build, spec

SIZES: dict[str, Any] = {
    "inputs": (("mean_rgb", 24), ("mean_audio", 6)),
    "labels": 40,
    "embedding": 16,
    "hidden": 12,
    "head": 20,
    "width": 16,
}

CONFIGS = {
    "bilstm": replace(spec("bilstm").published, **SIZES),
    "bilstm-relu": replace(spec("bilstm").published, **SIZES, cell="relu"),
    "bilstm-4-steps": replace(spec("bilstm").published, **SIZES, steps=4),
    "bilstm-2-steps-relu": replace(spec("bilstm").published, **SIZES, steps=2, cell="relu"),
    "lstm": replace(spec("lstm").published, **{**SIZES, "embedding": 8}),
    "lstm-wide": replace(
        spec("lstm").published, **{**SIZES, "labels": 10, "embedding": 128, "hidden": 128, "head": 256}
    ),
    "lstm-l2": replace(spec("lstm").published, **SIZES, scaling="l2"),
    "lstm-rgb": replace(spec("lstm").published, **{**SIZES, "inputs": (("mean_rgb", 24),)}, scaling="standard"),
    "dmrnet": replace(spec("dmrnet").published, **SIZES),
    "dmrnet-deep": replace(spec("dmrnet").published, **SIZES, input_blocks=3, joint_blocks=2),
    "dmrnet-run": replace(spec("dmrnet").published, **SIZES, form="run", scaling="l2"),
    "dmrnet-fisher": replace(spec("dmrnet").published, **SIZES, form="run", scaling="fisher"),
    "dmrnet-run-deep": replace(spec("dmrnet").published, **SIZES, form="run", input_blocks=2, joint_blocks=3),
}


def small_model(config: ModelConfig) -> nn.Module:
    """The model in evaluation mode; BatchNorms and scalings have seen data, some scales are negative."""
    torch.manual_seed(0)
    model = build(config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
        if isinstance(module, Scaling):
            for buffer in module.buffers():
                buffer.uniform_(0.5, 2)
    return model.eval()


def small_checkpoint(name: str) -> Checkpoint:
    config = CONFIGS[name]
    ranges = {name: (-2.5, 3.0) for name, _ in config.inputs}
    return Checkpoint(config, dict(small_model(config).state_dict()), {"MAP@10": 0.5}, TrainedOn(1234, ranges))


def save_run(runs: Path, name: str) -> Path:
    """Write the checkpoint as a run of its model; gives its path."""
    checkpoint = small_checkpoint(name)
    path = runs / checkpoint.config.name / "best.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, checkpoint, TrainConfig())
    return path


def write_videos(path: Path, config: ModelConfig, count: int, *, labelled: bool = True) -> str:
    """A shard of `count` random videos with the model's inputs, each labelled with the model's own best two."""
    model = small_model(config)
    random = np.random.default_rng(3)
    features = {name: random.normal(0, 0.6, (count, width)).astype(np.float32) for name, width in config.inputs}
    with torch.no_grad():
        best = model(*(torch.from_numpy(values) for values in features.values())).topk(2, dim=1).indices.numpy()
    records = []
    for row in range(count):
        labels = best[row].tolist() if labelled else None
        records.append(example(f"video{row}", labels, {name: values[row] for name, values in features.items()}))
    return write_shard(path, records)
