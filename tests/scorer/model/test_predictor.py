"""What every `Predictor` must hold: a new engine goes into PREDICTORS and is tried with all of this."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from scorer.errors import ModelError
from scorer.model.model import Model
from scorer.model.predictor import Features, Predictions, Predictor
from tests.onnx_models import save_model
from tests.scorer.fakes import INPUTS, LABELS, FakePredictor

Make = Callable[[Path], Predictor]
PREDICTORS: dict[str, Make] = {
    "fake": lambda folder: FakePredictor(batch_size=8, slots=2),
    "cpu": lambda folder: Model.open(
        save_model(folder / "m.onnx", inputs=INPUTS, labels=LABELS), device="cpu", batch_size=8, threads=2
    ),
    "embeddings": lambda folder: Model.open(
        save_model(folder / "m.onnx", inputs=INPUTS, labels=LABELS, hidden=5, embeddings=True),
        device="cpu",
        batch_size=8,
        threads=2,
    ),
    "fp16": lambda folder: Model.open(
        save_model(folder / "m.onnx", inputs=INPUTS, labels=LABELS, half=True), device="cpu", batch_size=8, threads=2
    ),
}


@pytest.fixture(params=PREDICTORS)
def predictor(request: pytest.FixtureRequest, tmp_path: Path) -> Predictor:
    return PREDICTORS[request.param](tmp_path)


def videos(count: int) -> Features:
    random = np.random.default_rng(0)
    return {name: random.normal(size=(count, width)).astype(np.float32) for name, width in INPUTS.items()}


def rows(features: Features, which: slice) -> Features:
    return {name: values[which] for name, values in features.items()}


def same(one: Predictions, other: Predictions) -> bool:
    return one.scores.tobytes() == other.scores.tobytes() and one.labels.tobytes() == other.labels.tobytes()


def test_its_facts_say_what_it_reads_and_gives(predictor: Predictor) -> None:
    facts = predictor.facts
    assert (dict(facts.inputs), facts.labels) == (INPUTS, LABELS)
    assert facts.dtype in ("float32", "float16")
    assert all([facts.path, facts.runtime, facts.device, facts.provider, facts.reason])
    assert len(facts.sha256) == 64
    assert min(predictor.batch_size, predictor.slots) >= 1


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
@pytest.mark.parametrize("k", [1, 10, LABELS])
def test_it_gives_the_best_labels_of_any_number_of_videos(predictor: Predictor, count: int, k: int) -> None:
    scores, labels = predictor.run(videos(count), k)
    assert (str(scores.dtype), str(labels.dtype)) == ("float32", "int64")
    assert scores.shape == labels.shape == (count, k)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert (np.diff(scores) <= 0).all()
    assert all(len(set(row)) == k and set(row) <= set(range(LABELS)) for row in labels.tolist())
    every = predictor.run(videos(count), LABELS)
    assert same(Predictions(scores, labels), Predictions(every.scores[:, :k].copy(), every.labels[:, :k].copy()))


def test_features_may_lie_in_its_own_buffers(predictor: Predictor) -> None:
    given = videos(20)
    expected = predictor.run(given)
    buffers = {name: predictor.buffer((20, width)) for name, width in INPUTS.items()}
    for name, values in buffers.items():
        assert (str(values.dtype), values.shape) == ("float32", (20, INPUTS[name]))
        values[:] = given[name]
    for piece in (slice(0, 20), slice(3, 9)):
        found = predictor.run(rows(buffers, piece))
        assert same(found, Predictions(expected.scores[piece], expected.labels[piece]))


def test_scores_depend_on_the_video_alone(predictor: Predictor) -> None:
    given = videos(100)
    expected = predictor.run(given)
    for size in (1, 3, 8, 20):
        for start in range(0, 40, size):
            piece = slice(start, start + size)
            found = predictor.run(rows(given, piece))
            assert same(found, Predictions(expected.scores[piece], expected.labels[piece]))


def test_several_threads_may_ask(predictor: Predictor) -> None:
    given = videos(100)
    expected = predictor.run(given)
    pieces = [slice(start, start + 5) for start in range(0, 100, 5)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda piece: predictor.run(rows(given, piece)), pieces))
    scores, labels = zip(*found, strict=True)
    assert same(Predictions(np.concatenate(scores), np.concatenate(labels)), expected)


@pytest.mark.parametrize("count", [0, 1, 8, 20])
def test_embeddings_come_with_the_same_predictions(predictor: Predictor, count: int) -> None:
    given = videos(count)
    if not predictor.facts.embeddings:
        with pytest.raises(ModelError, match=r"gives no embeddings; export it with embeddings$"):
            predictor.embed(given)
        return
    predictions, embeddings = predictor.embed(given)
    assert same(predictions, predictor.run(given))
    assert (str(embeddings.dtype), embeddings.shape) == ("float32", (count, predictor.facts.embeddings))
    for row in range(count):
        _, alone = predictor.embed(rows(given, slice(row, row + 1)))
        assert alone[0].tobytes() == embeddings[row].tobytes()
