"""The short form of tests/scorer/job/crash.py: `score` killed at random moments over generated videos."""

from __future__ import annotations

from pathlib import Path

from tests import onnx_models
from tests.scorer.fakes import INPUTS, LABELS, write_shards
from tests.scorer.job.crash import crash


def test_kills_at_random_moments_lose_nothing(tmp_path: Path) -> None:
    model = onnx_models.save_model(tmp_path / "tiny.onnx", inputs=INPUTS, labels=LABELS)
    tally = crash(write_shards(tmp_path / "shards", [700, 300, 900]), model, tmp_path, kills=8)
    assert tally.kills == 8
    assert tally.compared >= 1
