"""The sample shards are what their generator makes, resemble real ones, and are scored as they were.

Golden predictions: `score samples/*.tfrecord -o tests/golden/samples.csv` with the bundled model makes them again.
Kernels differ between kinds of CPU, so that a score may differ in its last digits and labels within that distance may
change places: scores are held to 2e-4, and a label may be missing only where its score is that close to the tenth.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from samples import generate

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "samples.csv"
BUNDLED = ROOT / "scorer" / "bundled" / "default.onnx"
SAMPLES = sorted((ROOT / "samples").glob("*.tfrecord"))
TOLERANCE = 2e-4


def decoded() -> tuple[NDArray, NDArray, NDArray, list[bytes]]:
    """Features (N, 1152), label values, label splits and ids of the committed samples."""
    from scorer.inputs.batching import batches
    from scorer.inputs.records import Schema
    from scorer.inputs.source import LocalFile

    (batch,) = batches([LocalFile.at(str(path)) for path in SAMPLES], Schema(generate.WIDTHS), 1024)
    features = np.hstack([batch.features[name] for name in generate.WIDTHS])
    return features, batch.label_values, batch.label_splits, batch.ids


def test_generator_makes_the_committed_bytes(tmp_path: Path) -> None:
    made = generate.generate(tmp_path)
    assert [path.name for path in made] == [path.name for path in SAMPLES]
    assert [path.read_bytes() for path in made] == [path.read_bytes() for path in SAMPLES]


def test_samples_are_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLES) < 1_000_000
    assert generate.STATISTICS.stat().st_size < 300_000


def test_another_seed_makes_other_videos() -> None:
    statistics = generate.load()
    assert list(generate.records(statistics, 2, seed=1)) != list(generate.records(statistics, 2, seed=2))


def test_samples_resemble_real_videos() -> None:
    features, values, splits, ids = decoded()
    assert len(set(ids)) == len(ids) == generate.SHARDS * generate.VIDEOS
    assert {len(name) for name in ids} == {4}
    assert generate.LOW <= features.min() < -1.9
    assert 1.9 < features.max() <= generate.HIGH
    assert 0.4 < features[:, :1024].std() < 0.5
    assert 0.6 < features[:, 1024:].std() < 0.7
    assert 2.5 < np.diff(splits).mean() < 3.5
    assert np.diff(splits).min() >= 1
    assert values.min() >= 0
    assert values.max() < 3862


def test_statistics_are_aggregates() -> None:
    statistics = generate.load()
    together = statistics.together
    assert together.diagonal().min() >= 50
    assert together[together > 0].min() >= 5


def test_the_order_of_features_varies() -> None:
    in_order = {
        record.index(b"mean_rgb") < record.index(b"mean_audio") for record in generate.records(generate.load(), 16)
    }
    assert in_order == {True, False}


Predictions = dict[str, dict[int, float]]


def read_predictions(path: Path) -> Predictions:
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["VideoId", "LabelConfidencePairs"]
    pairs = {name: iter(pairs.split()) for name, pairs in rows[1:]}
    return {
        name: {int(label): float(score) for label, score in zip(words, words, strict=True)}
        for name, words in pairs.items()
    }


def drift(golden: dict[int, float], now: dict[int, float]) -> list[str]:
    """What differs between two rows by more than kernels may."""
    last = min(golden.values())
    moved = [
        f"{label}: {golden[label]} is now {now[label]}"
        for label in golden.keys() & now.keys()
        if abs(golden[label] - now[label]) > TOLERANCE
    ]
    gone = [f"{label} is gone" for label in golden.keys() - now.keys() if golden[label] - last > TOLERANCE]
    come = [f"{label} has come" for label in now.keys() - golden.keys() if now[label] - last > TOLERANCE]
    return moved + gone + come


def test_predictions_do_not_drift(tmp_path: Path) -> None:
    assert BUNDLED.exists(), f"{BUNDLED} is missing: train and export the bundled model (docs/results.md)"
    assert GOLDEN.exists(), f"{GOLDEN} is missing: the docstring of this file says how to make it"
    output = tmp_path / "preds.csv"
    command = [sys.executable, "-m", "scorer", *map(str, SAMPLES), "--model", str(BUNDLED), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    golden, now = read_predictions(GOLDEN), read_predictions(output)
    assert list(now) == list(golden)
    found = {name: problems for name in golden if (problems := drift(golden[name], now[name]))}
    assert not found, found


def test_the_bundled_model_knows_what_it_was_trained_on() -> None:
    from scorer.model.model import Model

    model = Model.open(str(BUNDLED), device="cpu")
    assert model.facts.metadata["yt8m.videos"] == "36489"
    assert model.facts.ranges == {"mean_rgb": (-2.0, 2.01), "mean_audio": (-2.0, 2.01)}
    quantised = {name: np.full((2, width), 200, np.float32) for name, width in generate.WIDTHS.items()}
    model.run(quantised)
    assert [note for note in model.notes if "scores may mean nothing" in note] == model.notes
    assert len(model.notes) == 2


@pytest.mark.parametrize(
    ("now", "problems"),
    [
        ({1: 0.9, 2: 0.5}, []),
        ({1: 0.9001, 2: 0.5}, []),
        ({1: 0.9, 3: 0.5001}, []),
        ({1: 0.8, 2: 0.5}, ["1: 0.9 is now 0.8"]),
        ({2: 0.5, 3: 0.5}, ["1 is gone"]),
        ({1: 0.9, 3: 0.6}, ["3 has come"]),
    ],
)
def test_drift_can_be_seen(now: dict[int, float], problems: list[str]) -> None:
    assert drift({1: 0.9, 2: 0.5}, now) == problems
