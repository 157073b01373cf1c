"""`from scorer import Scorer`."""

from __future__ import annotations

import csv
import pickle
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import scorer
from scorer import Prediction, Scorer
from scorer.cli import score
from scorer.errors import InputError, ModelError, RecordError, ShardError, UsageError
from tests import onnx_models, shards
from tests.scorer.fakes import INPUTS, LABELS, write_shards
from tests.scorer.inputs.test_frames import quantised
from tests.scorer.threads import no_threads_left

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
        opened.predict(write_shards(tmp_path, [1]), k=0)
    with pytest.raises(InputError, match="no such file"):
        opened.predict("absent.tfrecord")
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
    with no_threads_left():
        videos = Scorer(model, batch_size=1).predict(write_shards(tmp_path, [50]))
        next(videos)
        videos.close()


def test_the_package_imports_nothing_until_asked() -> None:
    code = "import sys, scorer; print('numpy' in sys.modules, hasattr(scorer, 'absent')); from scorer import Scorer"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False False\n"
    assert scorer.__all__ == ["Embedding", "Prediction", "Scorer", "__version__"]
    assert scorer.__version__ == version("yt8m-edge")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; choose 1 to"),
        ({"batch_size": -1}, "batch_size is -1; choose 1 to"),
        ({"batch_size": 2.5}, "batch_size is 2.5; choose 1 to"),
        ({"batch_size": True}, "batch_size is True; choose 1 to"),
        ({"threads": 0}, "threads is 0; choose 1 to 256"),
        ({"threads": -5}, "threads is -5; choose 1 to 256"),
        ({"threads": 10**6}, "threads is 1000000; choose 1 to 256"),
        ({"threads": "two"}, "threads is 'two'; choose 1 to 256"),
        ({"gpu_memory": -1}, "gpu_memory is -1; choose 1 to"),
        ({"device": "tpu"}, "'tpu'"),
    ],
)
def test_options_that_cannot_be(model: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(model, **options)


ROWS: dict[str, Any] = {"mean_rgb": np.zeros((2, 4)), "mean_audio": np.zeros((2, 2))}


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"mean_rgb": np.zeros(4)}, r"mean_rgb has shape \(4,\), the model reads \(videos, 4\); give a row per video"),
        ({"mean_rgb": 1.0}, r"mean_rgb has shape \(\), the model reads \(videos, 4\)"),
        ({"mean_rgb": np.zeros((2, 1, 4))}, r"mean_rgb has shape \(2, 1, 4\), the model reads \(videos, 4\)"),
        ({"mean_rgb": np.zeros((2, 5))}, r"mean_rgb has shape \(2, 5\), the model reads \(videos, 4\)"),
        ({"mean_rgb": np.zeros((3, 4))}, "rows are videos, and mean_rgb has 3, mean_audio has 2"),
        ({"mean_rgb": [[1, 2, 3, 4], [1, 2, 3]]}, "the rows of mean_rgb differ in length; give numbers"),
        ({"mean_rgb": "four"}, "mean_rgb is of str_, not of numbers"),
        ({"mean_rgb": [["1", "2", "3", "4"]] * 2}, "mean_rgb is of str_, not of numbers"),
        ({"mean_rgb": None}, "mean_rgb is of object_, not of numbers"),
        ({"mean_rgb": np.zeros((2, 4), complex)}, "mean_rgb is of complex128, not of numbers"),
        ({"mean_rgb": np.full((2, 4), 1e300)}, "mean_rgb has NaN or infinity in it"),
        ({"k": 3.5}, "k is 3.5; choose 1 to 30, the labels of"),
        ({"k": "3"}, "k is '3'; choose 1 to 30"),
        ({"k": None}, "k is None; choose 1 to 30"),
        ({"k": True}, "k is True; choose 1 to 30"),
    ],
)
def test_features_that_cannot_be(model: str, features: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(model).score(**{**ROWS, **features})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error is 'ignore'; choose 'fail' or 'skip'"),
        ({"k": 3.5}, "k is 3.5"),
        ({"level": "segment"}, "level is 'segment'; choose 'auto', 'video' or 'frame'"),
        ({"level": "frame", "segments": True}, "segments are frames, whatever the level; leave one of the two out"),
        ({"columns": {"rgb": "x"}}, "there is no feature 'rgb' to name a column for; choose from mean_rgb, mean_audio"),
    ],
)
def test_ways_to_predict_that_cannot_be(model: str, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Scorer(model).predict(write_shards(tmp_path, [1]), **options)


def test_numbers_of_numpy_and_whole_numbers_are_taken(model: str) -> None:
    scores, _ = Scorer(model, batch_size=1, threads=1).score(mean_rgb=[[1, 2, 3, 4]], mean_audio=[[True, 0]], k=3)
    assert scores.shape == (1, 3)
    few: NDArray[np.float32] = Scorer(model).score(**ROWS, k=np.int64(3)).scores  # type: ignore[arg-type]
    assert few.shape == (2, 3)


def test_bad_records_are_left_out_and_listed(model: str, tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [9, 4])
    shards.damage_payload(paths[0], 7)
    with Scorer(model, batch_size=2).predict(paths, on_error="skip") as videos:
        assert [video.id for video in videos] == [f"0-{row}" for row in range(9) if row != 7] + [
            f"1-{row}" for row in range(4)
        ]
    (bad,) = videos.quarantined
    assert (bad.path, bad.record, bad.reason) == (paths[0], 7, "the payload fails its CRC32C")


def test_a_run_folder_as_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()
    with pytest.raises(ModelError, match="is the folder of a trained run, not an ONNX file; `yt8m export"):
        Scorer(tmp_path)


def test_a_scorer_says_what_it_is_and_closes(model: str) -> None:
    with Scorer(model, device="cpu") as opened:
        assert repr(opened) == f"<Scorer of {model} on cpu, 30 labels>"
        assert opened.names == NAMES
    assert repr(opened) == "<Scorer, closed>"
    with pytest.raises(UsageError, match="the scorer is closed; open another"):
        opened.score(**ROWS)


def test_a_pickled_scorer_opens_the_same_model_again(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(Path(model).read_bytes())
    monkeypatch.chdir(tmp_path)
    first = Scorer("m.onnx", device="cpu", batch_size=3)
    pickled = pickle.dumps(first)
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert (again.model.batch_size, again.model.facts.device) == (3, "cpu")
    assert again.score(**ROWS).scores.tobytes() == first.score(**ROWS).scores.tobytes()
    onnx_models.save_model(path, inputs=INPUTS, labels=LABELS, seed=1)
    with pytest.raises(ModelError, match=r"m\.onnx is no longer the model that was pickled; open it again"):
        pickle.loads(pickled)


def test_all_of_it_works_in_a_thread(model: str, tmp_path: Path) -> None:
    paths, found = write_shards(tmp_path, [5]), list[Prediction]()

    def work() -> None:
        with Scorer(model) as opened:
            found.extend(opened.predict(paths))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == list(Scorer(model).predict(paths))


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model") / "embeds.onnx"
    return onnx_models.save_model(path, inputs=INPUTS, labels=LABELS, hidden=7, embeddings=True)


def test_embeddings_are_those_of_the_command(embedder: str, tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "shards", [9, 5])
    shards.damage_payload(paths[0], 7)
    arguments = [*paths, "-o", str(tmp_path / "preds.csv"), "--model", embedder, "--quiet", "--on-error", "skip"]
    assert score.main([*arguments, "--embeddings", str(tmp_path / "videos.npy")]) == 10
    expected = np.load(tmp_path / "videos.npy")
    scorer = Scorer(embedder, batch_size=4)
    with scorer.embed(paths, on_error="skip") as videos:
        found = list(videos)
    assert [bad.record for bad in videos.quarantined] == [7]
    assert [video.id for video in found] == [video.id for video in scorer.predict(paths, on_error="skip")]
    assert np.array_equal(np.stack([video.values for video in found]), expected)
    with pytest.raises(ShardError):
        list(scorer.embed(paths))


def test_arrays_are_embedded(embedder: str) -> None:
    random = np.random.default_rng(0)
    features = {name: random.normal(size=(6, width)).astype(np.float32) for name, width in INPUTS.items()}
    vectors = Scorer(embedder).embed_arrays(**features)
    assert (str(vectors.dtype), vectors.shape) == ("float32", (6, 7))
    assert (vectors >= 0).all(), "behind the ReLU"
    assert Scorer(embedder).embed_arrays(**{name: values[:0] for name, values in features.items()}).shape == (0, 7)
    with pytest.raises(UsageError, match="not size"):
        Scorer(embedder).embed_arrays(**features, size=[1])


def test_a_model_without_embeddings_is_named(model: str, tmp_path: Path) -> None:
    for embed in (lambda: Scorer(model).embed(write_shards(tmp_path, [1])), lambda: Scorer(model).embed_arrays(**ROWS)):
        with pytest.raises(ModelError, match=r"tiny\.onnx gives no embeddings; export it with embeddings$"):
            embed()


def test_frames_and_segments(model: str, tmp_path: Path) -> None:
    context = [
        shards.entry("segment_start_times", shards.int64_feature([5, 20])),
        shards.entry("segment_end_times", shards.int64_feature([10, 25])),
        shards.entry("segment_labels", shards.int64_feature([3, 4])),
        shards.entry("segment_scores", shards.float_feature([1, 1])),
    ]
    record = shards.sequence_example("v", [9], quantised(40, 0, INPUTS), context)
    path = shards.write_shard(tmp_path / "x.tfrecord", [record])
    scorer = Scorer(model)
    assert [video.id for video in scorer.predict(path)] == ["v"]
    assert [video.id for video in scorer.predict(path, level="frame")] == ["v"]
    assert [video.id for video in scorer.predict(path, segments=True)] == ["v:5", "v:20"]
    with pytest.raises(RecordError):
        list(scorer.predict(path, level="video"))


def test_columns_and_empty_shards(embedder: str, tmp_path: Path) -> None:
    arrow: Any = pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is absent (extra parquet)")
    random = np.random.default_rng(0)
    features = {name: random.normal(size=(6, width)).astype(np.float32) for name, width in INPUTS.items()}
    columns = {f"my_{name}": [*values] for name, values in features.items()}
    parquet.write_table(arrow.table({"key": [f"v{row}" for row in range(6)], **columns}), tmp_path / "a.parquet")
    (tmp_path / "b.parquet").touch()
    scorer, named = Scorer(embedder), {"id": "key", **{name: f"my_{name}" for name in INPUTS}}
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    videos = list(scorer.embed(paths, columns=named, allow_empty=True))
    assert [video.id for video in videos] == [f"v{row}" for row in range(6)]
    assert np.array_equal(np.stack([video.values for video in videos]), scorer.embed_arrays(**features))
    assert len(list(scorer.predict(paths, columns=named, allow_empty=True))) == 6
    with pytest.raises(InputError, match="there is no column 'mean_rgb'"):
        list(scorer.predict(paths[0], columns={"id": "key"}))
    with pytest.raises(ShardError, match="empty"):
        list(scorer.predict(paths[1]))
