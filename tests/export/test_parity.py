"""The gates fail when they should, and say all that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from export import parity
from export.parity import Reference, Report, check_independence, check_parity, check_quality
from export.videos import Features, VideoSample, random_videos
from scorer.errors import GateError
from scorer.model.predictor import Predictions
from tests.scorer.fakes import FACTS

INPUTS = {"mean_rgb": 5}
LABELS = 30


class Stub:
    """A model of one Dense layer whose answers a test may bend."""

    def __init__(self, noise: float = 0.0, leak: float = 0.0, inputs: Mapping[str, int] = INPUTS) -> None:
        self.facts = replace(FACTS, inputs=inputs, labels=LABELS)
        self.batch_size, self.slots, self.notes = 256, 1, list[str]()
        self._noise, self._leak = noise, leak
        self.weight = np.random.default_rng(0).normal(size=(5, LABELS))

    def probabilities(self, features: Mapping[str, NDArray]) -> NDArray[np.float32]:
        x = features["mean_rgb"]
        noise = np.random.default_rng(1).normal(0, self._noise, (len(x), LABELS)) if self._noise else 0
        logits = x @ self.weight + noise + self._leak * x.max()
        return (1 / (1 + np.exp(-logits))).astype(np.float32)

    def run(self, features: Mapping[str, NDArray], k: int = 10) -> Predictions:
        found = self.probabilities(features)
        order = np.argsort(-found, axis=1, kind="stable")[:, :k]
        return Predictions(np.take_along_axis(found, order, axis=1), order)


def labelled(count: int) -> VideoSample:
    """Videos whose labels are the best two of the unbent model."""
    videos = random_videos(INPUTS, count)
    best = Stub().run(videos.features, 2)[1]
    return VideoSample(videos.features, best.ravel(), np.arange(0, 2 * count + 1, 2), "made up")


def reference(features: Features) -> NDArray[np.float32]:
    return Stub().probabilities(features)


def quality(model: Stub, videos: VideoSample, expected: Reference = reference) -> Report:
    return check_quality(model, expected(videos.features), videos)


def test_the_same_answers_pass() -> None:
    report = check_parity(Stub(), reference, INPUTS, random_videos(INPUTS, 300))
    assert report["max_difference"] == 0
    assert quality(Stub(), labelled(2500))["overlap"] == 1
    assert check_independence(Stub(), random_videos(INPUTS, 1100))["same_bits"]


def test_every_failure_is_named_at_once() -> None:
    with pytest.raises(GateError) as caught:
        check_parity(Stub(noise=1), reference, INPUTS, random_videos(INPUTS, 50))
    for size in parity.BATCHES:
        assert f"batch of {size}: " in str(caught.value)
    assert "another top-10" in str(caught.value)


def test_other_inputs_fail() -> None:
    with pytest.raises(GateError, match="inputs"):
        check_parity(Stub(inputs={"rgb": 5}), reference, INPUTS, random_videos(INPUTS, 50))


def test_nan_fails() -> None:
    with pytest.raises(GateError, match="off by"):
        check_parity(Stub(noise=float("nan")), reference, INPUTS, random_videos(INPUTS, 50))


def test_a_difference_just_beyond_the_bound_fails() -> None:
    def shifted(features: Features) -> NDArray[np.float32]:
        return reference(features) + np.float32(1.2e-5)

    with pytest.raises(GateError, match=r"off by up to 1\.2e-05"):
        check_parity(Stub(), shifted, INPUTS, random_videos(INPUTS, 50))


def test_quality_that_falls_fails() -> None:
    with pytest.raises(GateError) as caught:
        quality(Stub(noise=2), labelled(2500))
    for part in ("of the top-10", "MAP@10 falls", "GAP@20 falls"):
        assert part in str(caught.value)


def test_quality_of_no_numbers_fails() -> None:
    def broken(features: Features) -> NDArray[np.float32]:
        return np.full_like(reference(features), np.nan)

    with pytest.raises(GateError, match="of the file's scores are not finite"):
        quality(Stub(noise=float("nan")), labelled(20))
    with pytest.raises(GateError, match=r"of the checkpoint's scores.*of the file's scores"):
        quality(Stub(noise=float("nan")), labelled(2500), broken)


def test_quality_of_a_model_with_few_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.export.test_parity.LABELS", 7)
    report = quality(Stub(), labelled(2500))
    assert set(report["quality"]) == {"MAP@7", "GAP@7", "Hit@1", "PERR"}


def test_too_few_labels_leave_quality_unmeasured() -> None:
    report = quality(Stub(noise=1e-4), labelled(1999))
    assert report["quality"] == "not measured"
    with pytest.raises(GateError, match="of the top-10"):
        quality(Stub(noise=2), labelled(1999))


def test_answers_that_depend_on_neighbours_fail() -> None:
    with pytest.raises(GateError) as caught:
        check_independence(Stub(leak=0.1), random_videos(INPUTS, 1100))
    for size in (17, 1):
        assert f"batches of {size} a score differs" in str(caught.value)


def test_one_scale_for_a_batch_is_caught() -> None:
    """What ONNX's DynamicQuantizeLinear does: the activation scale is the batch's own largest value."""

    class Dynamic(Stub):
        def probabilities(self, features: Mapping[str, NDArray]) -> NDArray[np.float32]:
            x = features["mean_rgb"]
            scale = np.abs(x).max() / 127
            return super().probabilities({"mean_rgb": np.round(x / scale) * scale})

    with pytest.raises(GateError, match="batches of 1 a score"):
        check_independence(Dynamic(), random_videos(INPUTS, 1100))
