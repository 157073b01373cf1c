"""`from scorer import Scorer`."""

from __future__ import annotations

import csv
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import scorer
from scorer import Prediction, Scorer
from scorer.cli import score
from scorer.errors import InputError, ModelError, ShardError, UsageError
from tests import onnx_models, shards
from tests.scorer.fakes import INPUTS, LABELS, write_shards

NAMES = [f"label {index}" for index in range(LABELS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    return onnx_models.save_model(path, inputs=INPUTS, labels=LABELS, names=NAMES)


def test_predictions_are_those_of_the_command(model: str, tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "shards", [9, 5])
    score.main([*paths, "-o", str(tmp_path / "preds.csv"), "--model", model, "--quiet"])
    with open(tmp_path / "preds.csv", newline="") as file:
        rows = list(csv.reader(file))[1:]
    videos = list(Scorer(model, batch_size=4).predict(paths))
    assert [[video.id, pairs(video)] for video in videos] == rows
    assert videos[0].names == tuple(NAMES[label] for label in videos[0].labels)


def pairs(video: Prediction) -> str:
    return " ".join(f"{label} {score:f}" for label, score in zip(video.labels, video.scores, strict=True))


def test_a_path_a_pattern_and_a_folder(model: str, tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "shards", [3, 2])
    expected = list(Scorer(model).predict(paths, k=2))
    assert len(expected) == 5
    assert list(Scorer(model).predict(str(tmp_path / "shards" / "*.tfrecord"), k=2)) == expected
    assert list(Scorer(model).predict(tmp_path / "shards", k=2)) == expected


def test_arrays_are_scored(model: str) -> None:
    random = np.random.default_rng(0)
    features = {name: random.normal(size=(6, width)).astype(np.float32) for name, width in INPUTS.items()}
    scores, labels = Scorer(model).score(**features, k=5)
    expected, order = onnx_models.reference(features, labels=LABELS, k=5)
    assert labels.tolist() == order.tolist()
    np.testing.assert_allclose(scores, expected, atol=1e-6)


def test_what_is_wrong_is_said(model: str, tmp_path: Path) -> None:
    opened = Scorer(model)
    rgb, audio = np.zeros((2, 4)), np.zeros((2, 2))
    with pytest.raises(UsageError, match="mean_audio was not given"):
        opened.score(mean_rgb=rgb)
    with pytest.raises(UsageError, match="not mean_depth"):
        opened.score(mean_rgb=rgb, mean_audio=audio, mean_depth=rgb)
    with pytest.raises(UsageError, match="mean_audio has NaN or infinity in it"):
        opened.score(mean_rgb=rgb, mean_audio=audio * np.nan)
    with pytest.raises(UsageError, match="k is 31"):
        opened.score(mean_rgb=rgb, mean_audio=audio, k=31)
    with pytest.raises(UsageError, match="k is 0"):
        next(opened.predict(write_shards(tmp_path, [1]), k=0))
    with pytest.raises(InputError, match="no such file"):
        next(opened.predict("absent.tfrecord"))
    with pytest.raises(ModelError, match="absent: no such model"):
        Scorer("absent")


def test_a_bad_record_is_raised_after_the_batches_before_it(model: str, tmp_path: Path) -> None:
    (path,) = write_shards(tmp_path, [9])
    shards.damage_payload(path, 7)
    videos = Scorer(model, batch_size=2).predict(path)
    assert [next(videos).id for _ in range(6)] == [f"0-{row}" for row in range(6)]
    with pytest.raises(ShardError, match="record 7"):
        next(videos)


def test_leaving_early_ends_the_threads(model: str, tmp_path: Path) -> None:
    before = threading.active_count()
    videos = Scorer(model, batch_size=1).predict(write_shards(tmp_path, [50]))
    next(videos)
    videos.close()
    assert threading.active_count() == before


def test_the_package_imports_nothing_until_asked() -> None:
    code = "import sys, scorer; print('numpy' in sys.modules, hasattr(scorer, 'absent')); from scorer import Scorer"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False False\n"
    assert scorer.__all__ == ["Prediction", "Scorer"]
