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
from scorer.model.find import BUNDLED
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


needs_openvino = pytest.mark.skipif(
    not OPENVINO, reason="YT8M_OPENVINO_PYTHON names no environment with onnxruntime-openvino"
)


def on_openvino(model: str, output: Path, *where: str) -> subprocess.CompletedProcess[str]:
    """The samples scored in that environment."""
    shards = sorted(map(str, (ROOT / "samples").glob("*.tfrecord")))
    command = [OPENVINO, "-m", "scorer", *shards, "-o", str(output), "--model", model, "--top-k", "20", *where]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


@needs_openvino
@pytest.mark.parametrize(("precision", "bound", "least"), [("fp32", 1e-5, 0.999), ("int8", 0.02, 0.98)])
def test_openvino_gives_the_cpus_labels(tmp_path: Path, precision: str, bound: float, least: float) -> None:
    model = str(BUNDLED)
    if precision == "fp32":
        model = save_model(tmp_path / "m.onnx", inputs={"mean_rgb": 1024, "mean_audio": 128}, labels=300, hidden=64)
    lines = {}
    for where in (["--provider", "openvino"], ["--device", "cpu"]):
        output = tmp_path / f"{where[1]}.csv"
        done = on_openvino(model, output, *where)
        assert done.returncode == 0, done.stderr
        lines[where[1]] = output.read_text().splitlines()[1:]
    pairs = [np.array([line.split(",")[1].split() for line in each], float) for each in lines.values()]
    assert np.abs(pairs[0][:, 1::2] - pairs[1][:, 1::2]).max() < bound
    assert (pairs[0][:, ::2] == pairs[1][:, ::2]).mean() > least


@needs_openvino
def test_openvino_is_an_error_where_it_is_not_what_was_asked_for(tmp_path: Path) -> None:
    """Another device, an option that it has not, and a model whose work it leaves to the CPU."""
    model, output = save_model(tmp_path / "m.onnx", **SMALL), tmp_path / "preds.csv"
    heavy = build_model(inputs={"mean_rgb": 1024, "mean_audio": 128}, labels=300, hidden=64)
    at, first = next((at, node) for at, node in enumerate(heavy.graph.node) if node.op_type == "Gemm")
    x, weight, bias = first.input
    product = onnx.helper.make_node("TransposeMatMul", [x, weight], ["product"], domain="com.microsoft")
    first.CopyFrom(onnx.helper.make_node("Add", ["product", bias], [*first.output]))
    heavy.graph.node.insert(at, product)
    heavy.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(heavy, str(tmp_path / "heavy.onnx"))
    for provider, path, said in (
        ("openvino:device_type=GPU.7", model, "OpenVINOExecutionProvider does not open; see its documentation"),
        ("openvino:nonsense=1", model, "OpenVINOExecutionProvider failed: Invalid OpenVINO EP option: nonsense"),
        ("openvino", str(tmp_path / "heavy.onnx"), "OpenVINOExecutionProvider has no kernel for TransposeMatMul"),
    ):
        done = on_openvino(path, output, "--quiet", "--provider", provider)
        assert (done.returncode, done.stderr.count("\n")) == (DeviceError.exit_code, 1)
        assert said in done.stderr
        assert not output.exists()
