"""Configurations: what cannot be is refused, from the command line and from a checkpoint."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scorer.errors import ModelError, UsageError
from train.config import ModelConfig, TrainConfig
from train.registry import config_from_json, names, spec

MODEL_FAULTS: list[dict[str, Any]] = [
    {"dropout": -0.1},
    {"dropout": 0.99},
    {"dropout": float("nan")},
    {"cell_dropout": 1.0},
    {"bn_eps": 0.0},
    {"bn_momentum": 0.0},
    {"bn_momentum": 1.5},
    {"input_blocks": -1},
    {"joint_blocks": -1},
    {"inputs": (("mean_rgb", 8), ("mean_rgb", 8))},
]
TRAIN_FAULTS: list[dict[str, Any]] = [
    {"weight_decay": -0.1},
    {"seed": -1},
    {"seed": 2**63},
    {"lr": float("inf")},
]
WRONG_TYPES: list[dict[str, Any]] = [
    {"dropout": "x"},
    {"width": 16.0},
    {"width": True},
    {"labels": None},
    {"inputs": [["mean_rgb", 8.0]]},
    {"inputs": [["mean_rgb", 0]]},
    {"cell": ["tanh"]},
]


@pytest.mark.parametrize("name", names())
def test_json_and_back(name: str) -> None:
    model, train = spec(name).recipe
    assert config_from_json(model.to_json()) == model
    assert TrainConfig.from_json(train.to_json()) == train


@pytest.mark.parametrize("fault", MODEL_FAULTS)
def test_a_model_that_cannot_be(fault: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ModelConfig("dmrnet", **fault)


@pytest.mark.parametrize("fault", TRAIN_FAULTS)
def test_a_training_that_cannot_be(fault: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        TrainConfig(**fault)


@pytest.mark.parametrize("fault", WRONG_TYPES)
def test_wrong_types_in_a_checkpoint(fault: dict[str, Any]) -> None:
    values = json.loads(ModelConfig("dmrnet").to_json()) | fault
    with pytest.raises(ModelError, match="not a model configuration"):
        config_from_json(json.dumps(values))


def test_json_that_is_no_object() -> None:
    for text in ("[]", "1", "null", "{"):
        with pytest.raises(ModelError):
            config_from_json(text)
        with pytest.raises(ModelError):
            TrainConfig.from_json(text)
