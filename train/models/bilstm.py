"""The report's BiLSTM: its LSTM (train/models/lstm.py) in both directions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from train.config import ModelConfig
from train.models.lstm import RECIPE, SETTINGS, RecurrentNet
from train.registry import ModelSpec

_PUBLISHED = ModelConfig("bilstm")
SPEC = ModelSpec(
    build=partial(RecurrentNet, bidirectional=True),
    settings=SETTINGS,
    published=_PUBLISHED,
    recipe=(replace(_PUBLISHED, scaling="fisher", cell_dropout=0.1, dropout=0.1), RECIPE),
)
