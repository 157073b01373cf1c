"""Embeddings: what the last layer reads, as an output of the file, in every model and precision."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from export import cli
from export.build import export_to, trace_checkpoint
from export.evaluate import evaluate
from export.graph import Graph, Operator, with_embeddings
from export.parity import EMBEDDING_BOUND, check_embeddings, torch_embeddings
from export.reduce import reduce
from export.tracing import trace
from export.videos import VideoSample, random_videos
from scorer.errors import GateError, ModelError
from scorer.model.contract import EMBEDDINGS
from scorer.model.model import Model
from scorer.model.predictor import Embeddings, Features, Predictions
from tests.export.small import CONFIGS, save_run, small_checkpoint, small_model, write_videos

MODELS = ["bilstm", "lstm", "dmrnet", "dmrnet-run", "bilstm-4-steps"]
IN_INT8 = ["bilstm-4-steps", "lstm-wide", "dmrnet"]
"""Random weights of which int8 keeps the top ten."""


def read_by_the_last_layer(model: Any, features: Features) -> NDArray[np.float32]:
    """Of the report's models, with the last layer taken off."""
    model.classify = nn.Identity()
    with torch.no_grad():
        found: NDArray[np.float32] = model(*(torch.from_numpy(values) for values in features.values())).numpy()
    return found


@pytest.mark.parametrize(
    ("name", "precision"),
    [*itertools.product(MODELS, ["fp32", "fp16"]), *((name, "int8") for name in IN_INT8)],
)
def test_a_file_gives_them_and_the_same_scores(name: str, precision: str, tmp_path: Path) -> None:
    checkpoint = small_checkpoint(name)
    videos = random_videos(dict(checkpoint.config.inputs), 300)
    found = {}
    for embeddings in (False, True):
        traced = trace_checkpoint(checkpoint, embeddings=embeddings)
        found[embeddings] = export_to(tmp_path / f"{embeddings}.onnx", traced, precision, videos, videos)
    model = Model.open(str(found[True].path), device="cpu")
    predictions, vectors = model.embed(videos.features)
    expected = read_by_the_last_layer(small_model(checkpoint.config), videos.features)
    assert model.facts.embeddings == expected.shape[1] == found[True].report["embeddings"]["width"]
    largest = np.abs(expected).max()
    assert np.abs(vectors - expected).max() <= {"fp32": 1e-5, "fp16": 5e-3, "int8": 0.2}[precision] * largest
    plain = Model.open(str(found[False].path), device="cpu")
    assert plain.facts.embeddings == 0
    assert "embeddings" not in found[False].report
    expected_scores, expected_labels = plain.run(videos.features)
    assert predictions.scores.tobytes() == expected_scores.tobytes()
    assert predictions.labels.tobytes() == expected_labels.tobytes()


@pytest.mark.parametrize("name", CONFIGS)
def test_reducing_changes_neither_logits_nor_embeddings(name: str) -> None:
    config = CONFIGS[name]
    graph = trace(small_model(config), config.inputs)
    given = random_videos(dict(config.inputs), 20).features
    expected = evaluate(graph, given)
    both = reduce(with_embeddings(graph))
    found = evaluate(both, given)
    last = graph.ops[graph.output].inputs[0]
    assert np.abs(found[EMBEDDINGS] - expected[last]).max() < 1e-9
    assert np.abs(found[both.output] - expected[graph.output]).max() < 1e-9
    alone = reduce(graph)
    assert [op.kind for op in both.ops.values() if op.kind != EMBEDDINGS] == [op.kind for op in alone.ops.values()]
    for name, op in alone.ops.items():
        for key, values in op.values.items():
            assert np.array_equal(values, both.ops[name].values[key]), "the logits' own weights"


def test_the_command_writes_them_and_says_how_near_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "runs", "lstm-wide")
    shard = write_videos(tmp_path / "a.tfrecord", CONFIGS["lstm-wide"], 2100)
    arguments = ["--model", "lstm", "--runs", str(tmp_path / "runs"), "-o", str(tmp_path), "--check", shard]
    assert cli.main([*arguments, "--precision", "all", "--embeddings", "--no-speed", "--draw"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "lstm.onnx: embeddings of 256 numbers, within" in out
    assert out.count("embeddings of 256 numbers, with a cosine of 1.0") + out.count("a cosine of 0.9") == 2
    outputs = onnx.load(str(tmp_path / "lstm.int8.onnx")).graph.output
    assert [output.name for output in outputs] == ["scores", "labels", "embeddings"]


def test_a_model_without_a_translation_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train.models.lstm import RecurrentBranch

    monkeypatch.delattr(RecurrentBranch, "trace")
    save_run(tmp_path / "runs", "lstm")
    arguments = ["--model", "lstm", "--runs", str(tmp_path / "runs"), "-o", str(tmp_path), "--embeddings"]
    assert cli.main(arguments) == 6
    line = "export: embeddings need a model whose layers have a method `trace`; export it without them"
    assert capsys.readouterr().err.splitlines()[-1] == line


def test_a_network_that_cannot_give_them() -> None:
    one = np.ones(4)
    x = Operator("input", width=4)
    scaled = Graph({"x": x, "y": Operator("affine", ("x",), {"scale": one, "shift": one}, 4)}, "y")
    with pytest.raises(ModelError, match="its last layer is no Dense"):
        with_embeddings(scaled)
    dense = Operator("dense", (EMBEDDINGS,), {"weight": np.eye(4), "bias": one}, 4)
    with pytest.raises(ModelError, match="embeddings is the name of another value"):
        with_embeddings(Graph({EMBEDDINGS: x, "y": dense}, "y"))


class Off:
    """Embeddings that are PyTorch's with a change."""

    def __init__(self, change: Any) -> None:
        config = CONFIGS["lstm"]
        self._read, self._change = torch_embeddings(small_model(config), dict(config.inputs)), change

    def embed(self, features: dict[str, NDArray[np.float32]], k: int = 10) -> tuple[Predictions, Embeddings]:
        none = np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        return Predictions(*none), self._change(self._read(features))


@pytest.mark.parametrize(
    ("precision", "change", "message"),
    [
        ("fp32", lambda x: x + 3 * EMBEDDING_BOUND * np.abs(x).max(), "are off by up to .* of their largest value"),
        ("fp32", lambda x: x[:, 1:], r"embeddings are \(1, 19\), not \(1, 20\)"),
        ("fp32", lambda x: x * np.float32(np.nan), "are off by up to nan"),
        ("fp16", lambda x: x[:, ::-1], r"have a cosine of .* with the checkpoint's, not 0.9999"),
        ("int8", lambda x: -x, r"have a cosine of -1.0000 with the checkpoint's, not 0.98"),
    ],
)
def test_embeddings_that_are_not_the_checkpoints_fail_the_gate(precision: str, change: Any, message: str) -> None:
    config = CONFIGS["lstm"]
    reference = torch_embeddings(small_model(config), dict(config.inputs))
    videos: VideoSample = random_videos(dict(config.inputs), 300)
    assert check_embeddings(Off(lambda x: x * 1), reference, videos, precision)["width"] == 20
    with pytest.raises(GateError, match=message):
        check_embeddings(Off(change), reference, videos, precision)
