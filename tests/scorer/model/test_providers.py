"""Other execution providers: their names, the model they get, and OpenVINO where YT8M_OPENVINO_PYTHON has it.

Without it ONNX Runtime's CPU provider stands in, under another name.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from scorer.errors import DeviceError, UsageError
from scorer.model import devices, providers, runtime
from scorer.model.devices import Provider
from scorer.model.model import Model
from scorer.model.providers import without_default_k
from tests.onnx_models import build_model, save_model
from tests.scorer.model.test_model import SMALL, features, rows, same

ROOT = Path(__file__).parents[3]
OPENVINO = os.environ.get("YT8M_OPENVINO_PYTHON", "")


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devices.PROVIDERS, "other", ("CPUExecutionProvider", "a package"))
    monkeypatch.setattr(runtime, "_heavy_on_cpu", lambda session: [])


@pytest.mark.parametrize(
    ("text", "options"),
    [("openvino", {}), ("openvino:device_type=GPU,num_streams=2", {"device_type": "GPU", "num_streams": "2"})],
)
def test_a_provider_and_its_options(text: str, options: dict[str, str]) -> None:
    provider = Provider.parse(text)
    assert (provider.name, provider.options, str(provider)) == ("openvino", options, text)


@pytest.mark.parametrize("text", ["", "cuda", "openvino:x", "openvino:=1", "openvino:a="])
def test_what_is_no_provider(text: str) -> None:
    with pytest.raises(UsageError):
        Provider.parse(text)


def test_a_provider_that_is_not_there(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", **SMALL)
    with pytest.raises(DeviceError, match=r"has no MIGraphXExecutionProvider; .*pip install onnxruntime-migraphx"):
        Model.open(path, provider="migraphx")
    with pytest.raises(UsageError, match="a device and a provider"):
        Model.open(path, device="cpu", provider="openvino")


def test_heavy_operators_left_to_the_cpu_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(devices.PROVIDERS, "other", ("CPUExecutionProvider", "a package"))
    with pytest.raises(DeviceError, match="CPUExecutionProvider has no kernel for Gemm"):
        Model.open(save_model(tmp_path / "m.onnx", **SMALL), provider="other")


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("k", [1, 10, 30])
@pytest.mark.parametrize("half", [False, True])
def test_answers_are_the_cpus(tmp_path: Path, k: int, half: bool) -> None:
    path = save_model(tmp_path / "m.onnx", **SMALL, half=half)
    model, given = Model.open(path, provider="other", batch_size=64), features(150)
    facts = model.facts
    assert (facts.device, facts.provider, model.slots) == ("other", "CPUExecutionProvider", 1)
    assert facts.runtime.endswith(" with other, batches of 64")
    for videos in (1, 64, 150):
        piece = rows(given, slice(videos))
        assert same(model.run(piece, k), Model.open(path, device="cpu").run(piece, k))


@pytest.mark.usefixtures("stand_in")
def test_embeddings_are_the_cpus(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", **SMALL, hidden=16, embeddings=True)
    for videos in (1, 64, 150):
        given = features(videos)
        one, other = Model.open(path, provider="other", batch_size=64).embed(given), Model.open(path).embed(given)
        assert same(one[0], other[0])
        assert one[1].tobytes() == other[1].tobytes()


@pytest.mark.usefixtures("stand_in")
def test_equal_scores_stand_by_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = build_model(**SMALL)
    for tensor in proto.graph.initializer:
        if tensor.name in ("w2", "b2"):
            tensor.raw_data = bytes(len(tensor.raw_data))
    path = tmp_path / "m.onnx"
    onnx.save(proto, str(path))
    monkeypatch.setattr(providers.ProviderSlot, "_ask", backwards(providers.ProviderSlot._ask))
    assert Model.open(str(path), provider="other").run(features(5), 10).labels.tolist() == [list(range(10))] * 5


def backwards(ask: Callable[..., Any]) -> object:
    """As a provider may: the last labels first where all are equal."""

    def asked(slot: object, k: int, embeddings: bool = False) -> object:
        found, own = ask(slot, k, embeddings)
        return found._replace(labels=SMALL["labels"] - 1 - found.labels), own

    return asked


def test_k_becomes_an_input_and_nothing_else_changes() -> None:
    proto = build_model(**SMALL, hidden=200)  # lengths of more than one byte
    changed = onnx.load_from_string(without_default_k(proto.SerializeToString()))
    assert [tensor.name for tensor in changed.graph.initializer if tensor.name == "k"] == []
    expected = onnx.ModelProto()
    expected.CopyFrom(proto)
    expected.graph.initializer.remove(next(t for t in expected.graph.initializer if t.name == "k"))
    assert changed == expected
    session = onnxruntime.InferenceSession(changed.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()][-1] == "k"


@pytest.mark.skipif(not OPENVINO, reason="YT8M_OPENVINO_PYTHON names no environment with onnxruntime-openvino")
def test_openvino_gives_the_cpus_labels(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m.onnx", inputs={"mean_rgb": 1024, "mean_audio": 128}, labels=300, hidden=64)
    shards = sorted(map(str, (ROOT / "samples").glob("*.tfrecord")))
    lines = {}
    for where in (["--provider", "openvino"], ["--device", "cpu"]):
        output = tmp_path / f"{where[1]}.csv"
        command = [OPENVINO, "-m", "scorer", *shards, "-o", str(output), "--model", model, "--top-k", "20", *where]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        lines[where[1]] = output.read_text().splitlines()[1:]
    pairs = [np.array([line.split(",")[1].split() for line in each], float) for each in lines.values()]
    assert np.abs(pairs[0][:, 1::2] - pairs[1][:, 1::2]).max() < 1e-5
    assert (pairs[0][:, ::2] == pairs[1][:, ::2]).mean() > 0.999
