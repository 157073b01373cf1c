"""The models by name; and that a fourth one is one file, from training to scores."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from export.cli import main as export_main
from scorer.cli.score import main as score_main
from scorer.errors import ModelError, UsageError
from tests.train.shards import write
from train import cli, models
from train.config import ModelConfig
from train.registry import config_from_json, names, spec


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """train/models/toy.py, as if it lay there."""
    (tmp_path / "models").mkdir()
    shutil.copy(Path(__file__).with_name("toy.py"), tmp_path / "models" / "toy.py")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path / "models")])
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("train.models.toy", None)


def test_the_reports_models_come_first() -> None:
    assert names() == ("dmrnet", "lstm", "bilstm")


def test_an_unknown_model() -> None:
    with pytest.raises(UsageError, match="no model 'mlp'"):
        spec("mlp")
    with pytest.raises(ModelError, match="no model 'mlp'"):
        config_from_json('{"name": "mlp"}')


class Reads:
    """A configuration that notes which of its fields are read."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self.config, name)


@pytest.mark.parametrize("name", names())
def test_settings_are_the_fields_that_a_model_reads(name: str) -> None:
    reads = Reads(spec(name).published)
    with torch.device("meta"):
        spec(name).build(reads)
    assert reads.names == {"inputs", *spec(name).settings}


@pytest.mark.usefixtures("toy")
def test_a_fourth_model_is_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Its own setting and all, it is trained, exported operator by operator, checked, and scored with."""
    torch.set_num_threads(1)
    assert names() == ("dmrnet", "lstm", "bilstm", "toy")
    write(Path("a.tfrecord"), 120)
    given = ["--model", "toy", "--data", "a.tfrecord", "--inputs", "mean_rgb:8", "mean_audio:4"]
    assert cli.main([*given, "--set", "labels=25", "rank=6"]) == 0
    assert "toy: epoch 2/2" in capsys.readouterr().err
    text = Path("runs/toy/config.json").read_text()
    assert '"rank": 6' in text
    assert export_main(["--model", "toy", "--check", "a.tfrecord", "--no-speed"]) == 0
    assert score_main(["a.tfrecord", "-o", "preds.csv", "--model", "models/toy.onnx", "--quiet"]) == 0
    assert len(Path("preds.csv").read_text().splitlines()) == 121
