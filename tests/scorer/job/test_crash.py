"""The short form of tests/scorer/job/crash.py: `score` killed at random moments over generated videos."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import onnx_models
from tests.scorer.fakes import INPUTS, LABELS, write_shards
from tests.scorer.job.crash import crash


@pytest.mark.parametrize("embeddings", [False, True])
def test_kills_at_random_moments_lose_nothing(tmp_path: Path, embeddings: bool) -> None:
    model = onnx_models.save_model(tmp_path / "tiny.onnx", inputs=INPUTS, labels=LABELS, embeddings=embeddings)
    shards = write_shards(tmp_path / "shards", [700, 300, 900])
    tally = crash(shards, model, tmp_path, kills=5, embeddings=embeddings)
    assert tally.kills == 5
    assert tally.compared >= 1
