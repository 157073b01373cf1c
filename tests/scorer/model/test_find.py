"""Which model a name means, and what is said of the one that nobody named."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import onnx
import pytest

from scorer.cli.score import main
from scorer.errors import ModelError
from scorer.model.find import BUNDLED, find_model, open_model
from scorer.model.model import Model
from tests.onnx_models import save_model

SAMPLE = str(Path(__file__).parents[3] / "samples" / "samples0000.tfrecord")
WHEN = datetime(2026, 3, 1, 12, 30)


def opened(path: str) -> Model:
    return Model.open(path, device="cpu", threads=1)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_default(**metadata: str) -> None:
    save_model(Path("models/default.onnx"))
    model = onnx.load("models/default.onnx")
    for key, value in metadata.items():
        model.metadata_props.add(key=f"yt8m.{key}", value=value)
    onnx.save(model, "models/default.onnx")
    os.utime("models/default.onnx", (WHEN.timestamp(), WHEN.timestamp()))


def test_the_last_export_says_when_and_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    save_default(videos="34550", metrics='{"MAP@10":0.76543}')
    assert main([SAMPLE, "-o", "preds.csv"]) == 0
    expected = "models/default.onnx (exported 2026-03-01 12:30, trained on 34,550 videos, MAP@10 0.7654)"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    "metrics", ["", "[]", "{", "{}", '{"MAP@10":null}', "[" * 100_000, '{"MAP@10":1%s}' % ("0" * 400)]
)
@pytest.mark.parametrize("videos", ["-3", "9" * 5000])
def test_metadata_without_figures(metrics: str, videos: str) -> None:
    save_default(videos=videos, metrics=metrics)
    _, origin = open_model(None, opened)
    assert origin == "exported 2026-03-01 12:30"


def test_bundled_is_the_packages_own_model_whatever_was_exported() -> None:
    save_default()
    assert find_model("bundled") == (str(BUNDLED), "bundled")
    assert find_model(None)[0] == "models/default.onnx"
    Path("models/default.onnx").unlink()
    assert find_model(None) == (str(BUNDLED), "bundled")


def test_no_model_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorer.model.find.BUNDLED", Path("gone.onnx"))
    for name in (None, "bundled"):
        with pytest.raises(ModelError, match="no bundled model"):
            find_model(name)
