"""Models: the contract of the file, what is refused and how, and scores that depend on nothing but the features."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

import scorer.model.placement
import scorer.model.slots
from scorer.errors import DeviceError, UsageError
from scorer.model import runtime
from scorer.model.model import Model
from scorer.model.placement import CPU_BATCH
from tests.onnx_models import build_model, metadata, reference, save_model
from tests.scorer.threads import allow_threads

INPUTS = {"mean_rgb": 8, "mean_audio": 4}
SMALL: dict[str, Any] = {"inputs": INPUTS, "labels": 30}
Features = dict[str, NDArray[np.float32]]


def features(videos: int, inputs: Mapping[str, int] = INPUTS, seed: int = 1) -> Features:
    random = np.random.default_rng(seed)
    return {name: random.normal(size=(videos, width)).astype(np.float32) for name, width in inputs.items()}


def rows(given: Features, which: Any) -> Features:
    return {name: values[which] for name, values in given.items()}


def same(one: tuple[NDArray[Any], NDArray[Any]], other: tuple[NDArray[Any], NDArray[Any]]) -> bool:
    return all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


# ---- what an open model is, and what it predicts


def test_an_open_model_tells_what_it_is(tmp_path: Path) -> None:
    names = [f"label {i}" for i in range(30)]
    path = save_model(tmp_path / "m.onnx", **SMALL, names=names)
    model = Model.open(path)
    assert (model.facts.path, model.facts.inputs, model.facts.labels, model.facts.names) == (path, INPUTS, 30, names)
    assert model.facts.sha256 == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert (model.facts.provider, model.facts.device) == ("CPUExecutionProvider", "cpu")
    assert model.facts.metadata == metadata(30, names=names)
    assert "CUDA" in model.facts.reason
    assert Model.open(path, device="cpu").facts.reason == "asked for"


@pytest.mark.parametrize("hidden", [0, 16])
@pytest.mark.parametrize("k", [1, 10, 30])
def test_answers_are_the_networks(tmp_path: Path, hidden: int, k: int) -> None:
    model = Model.open(save_model(tmp_path / "m.onnx", **SMALL, hidden=hidden))
    given = features(50)
    scores, labels = model.run(given, k)
    expected_scores, expected_labels = reference(given, labels=30, hidden=hidden, k=k)
    assert (str(scores.dtype), str(labels.dtype), scores.shape) == ("float32", "int64", (50, k))
    assert np.abs(scores - expected_scores).max() < 1e-6
    assert (labels == expected_labels).all()


def test_equal_scores_go_to_the_lower_label(tmp_path: Path) -> None:
    model = Model.open(save_model(tmp_path / "m.onnx", **SMALL))
    proto = build_model(**SMALL)
    for tensor in proto.graph.initializer:
        if tensor.name != "k":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), tensor.name))
    onnx.save(proto, tmp_path / "flat.onnx")
    model = Model.open(str(tmp_path / "flat.onnx"))
    scores, labels = model.run(features(3))
    assert (labels == np.arange(10)).all()
    assert (scores == 0.5).all()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_videos_scores_depend_on_nothing_but_its_features(tmp_path: Path, half: bool, threads: int) -> None:
    """To the bit: alone, in 17s, in a thousand, shuffled, and whatever the threads. At the models' real widths."""
    wide = {"mean_rgb": 1024, "mean_audio": 128}
    path = save_model(tmp_path / "m.onnx", inputs=wide, labels=3862, hidden=64, half=half)
    given = features(1100, wide)
    expected = Model.open(path, threads=1, batch_size=2048).run(given)
    model = Model.open(path, threads=threads)
    assert same(model.run(given), expected)
    order = np.random.default_rng(0).permutation(1100)
    assert same(model.run(rows(given, order)), (expected[0][order], expected[1][order]))
    for size in (1, 2, 3, 17, 256):
        for start in range(0, 6 * size, size):
            piece = slice(start, start + size)
            assert same(model.run(rows(given, piece)), (expected[0][piece], expected[1][piece])), (size, start)


def test_fewer_labels_are_the_first_of_more(tmp_path: Path) -> None:
    model = Model.open(save_model(tmp_path / "m.onnx", **SMALL))
    scores, labels = model.run(features(9), 30)
    assert same(model.run(features(9), 4), (scores[:, :4].copy(), labels[:, :4].copy()))


def test_many_threads_may_ask_at_once(tmp_path: Path) -> None:
    model = Model.open(save_model(tmp_path / "m.onnx", **SMALL, hidden=16), threads=2)
    given = features(600)
    expected = model.run(given)
    pieces = [slice(i, i + 5) for i in range(0, 600, 5)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda piece: model.run(rows(given, piece)), pieces))
    assert same((np.concatenate([a for a, _ in found]), np.concatenate([b for _, b in found])), expected)


def test_no_videos_give_no_predictions(tmp_path: Path) -> None:
    scores, labels = Model.open(save_model(tmp_path / "m.onnx", **SMALL)).run(features(0), 7)
    assert (scores.shape, labels.shape, str(labels.dtype)) == ((0, 7), (0, 7), "int64")


@pytest.mark.parametrize(
    ("given", "k", "message"),
    [
        (features(2), 0, "choose 1 to 30"),
        (features(2), 31, "choose 1 to 30"),
        ({"mean_rgb": np.zeros((2, 8), np.float32)}, 10, "mean_audio was not given"),
        ({**features(2), "mean_audio": np.zeros((3, 4), np.float32)}, 10, "mean_rgb has 2, mean_audio has 3"),
        ({**features(2), "mean_audio": np.zeros((2, 5), np.float32)}, 10, "shape"),
        ({**features(2), "mean_rgb": np.zeros(8, np.float32)}, 10, "shape"),
        ({**features(2), "mean_rgb": np.float32(3)}, 10, "shape"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, given: Any, k: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Model.open(save_model(tmp_path / "m.onnx", **SMALL)).run(given, k)


def test_a_model_that_divides_by_the_norm_of_its_features_opens(tmp_path: Path) -> None:
    """Its scores of features of zeros alone would be NaN."""
    proto = build_model(inputs={"mean_rgb": 8}, labels=30)
    proto.graph.node[0].input[0] = "scaled"
    proto.graph.node.insert(0, helper.make_node("LpNormalization", ["mean_rgb"], ["scaled"], axis=1, p=2))
    onnx.save(proto, tmp_path / "m.onnx")
    scores, _ = Model.open(str(tmp_path / "m.onnx")).run(features(3, {"mean_rgb": 8}))
    assert np.isfinite(scores).all()


def test_slots_share_the_threads(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", **SMALL)
    assert [Model.open(path, threads=n).slots for n in (1, 2, 5, 40)] == [1, 2, 5, 16]
    assert Model.open(path, threads=1).batch_size == CPU_BATCH


@pytest.mark.parametrize("threads", [1, 16, 20, 40])
def test_as_many_threads_compute_as_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """To the bit what one alone computes. A session of n threads starts n - 1; its callers, the slots, are others."""
    path = save_model(tmp_path / "m.onnx", inputs={"mean_rgb": 1024}, labels=40, hidden=64)
    given = features(600, {"mean_rgb": 1024})
    expected = Model.open(path, threads=1).run(given)
    started: list[int] = []

    def open_cpu(module: Any, model: Any, count: int) -> Any:
        started.append(count - 1)
        return runtime.open_cpu(module, model, count)

    monkeypatch.setattr(scorer.model.placement, "open_cpu", open_cpu)
    model = Model.open(path, threads=threads, batch_size=32)
    assert sum(started) + model.slots == threads
    assert same(model.run(given), expected)


# ---- devices and runtimes


def test_a_gpu_asked_for_and_absent_is_an_error(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", **SMALL)
    if "CUDAExecutionProvider" in runtime.import_runtime().get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    with pytest.raises(DeviceError, match=r"no CUDA provider; .*yt8m-edge\[gpu\]"):
        Model.open(path, device="cuda")


@pytest.mark.parametrize("device", ["tpu", "cuda:", "cuda:x", "cuda:1,", "CPU", ""])
def test_a_device_that_does_not_exist_is_refused(tmp_path: Path, device: str) -> None:
    with pytest.raises(UsageError, match="no device is called"):
        Model.open(save_model(tmp_path / "m.onnx", **SMALL), device=device)


# ---- memory


def test_memory_that_runs_out_halves_the_batch_and_changes_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.open(save_model(tmp_path / "m.onnx", **SMALL), threads=2, batch_size=256)
    given = features(1000)
    expected = model.run(given)
    limit_rows(monkeypatch, 40)
    assert same(model.run(given), expected)
    assert model.batch_size == 32
    assert model.notes == [f"memory ran out: batches of {n} instead of {2 * n}" for n in (128, 64, 32)]


def test_memory_that_is_not_enough_for_one_video_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.open(save_model(tmp_path / "m.onnx", **SMALL))
    limit_rows(monkeypatch, 0)
    with pytest.raises(DeviceError, match="not enough memory for one video"):
        model.run(features(3))


def test_threads_that_the_system_does_not_start_change_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.open(save_model(tmp_path / "m.onnx", **SMALL), threads=4, batch_size=16)
    given = features(100)
    expected = model.run(given)
    for most in (0, 2):
        with monkeypatch.context() as patch:
            allow_threads(patch, most)
            assert same(model.run(given), expected)


def test_no_more_threads_are_asked_for_than_the_system_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime would wait for ever for those that it does not get."""
    allow_threads(monkeypatch, 3)
    asked: list[int] = []

    def opened(installed: Any, file: Any, threads: int) -> Any:
        asked.append(threads)
        return runtime.open_cpu(installed, file, threads)

    monkeypatch.setattr(scorer.model.placement, "open_cpu", opened)
    model = Model.open(save_model(tmp_path / "m.onnx", **SMALL), threads=40)
    assert (asked, model.slots) == ([1], 3)
    assert model.notes == ["the system starts 3 of 40 threads: a limit on processes or memory"]


def limit_rows(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Make the CPU fail as ONNX Runtime does when it cannot allocate, for more rows than `most`."""
    run = scorer.model.slots.CpuSlot.run

    def limited(slot: Any, given: Any, k: int, embeddings: bool) -> Any:
        if len(given["mean_rgb"]) > most:
            raise RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for 9 bytes")
        return run(slot, given, k, embeddings)

    monkeypatch.setattr(scorer.model.slots.CpuSlot, "run", limited)


def test_a_failure_is_told_in_one_line_without_places_in_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model.open(save_model(tmp_path / "m.onnx", **SMALL))
    place = "/build/onnxruntime_src/core/x.cc:9"
    for words, said in (
        (f"[ONNXRuntimeError] : 1 : FAIL : {place} it broke\nStacktrace:", "x.cc:9 it broke"),
        (f"{place} std::shared_ptr<T> ort::Make(const A&, const B&) const It (really) broke", "It (really) broke"),
    ):
        error = RuntimeError(words)
        monkeypatch.setattr(scorer.model.slots.CpuSlot, "run", lambda *_, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(DeviceError) as caught:
            model.run(features(3))
        assert str(caught.value) == f"cpu failed: {said}; see `yt8m doctor`"
