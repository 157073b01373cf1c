"""The command: what it writes, what it refuses, and that a broken model is not left behind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from export.cli import main
from export.ops import Graph
from export.reduce import reduce as original
from scorer.model import Model
from tests.export.small import CONFIGS, save_run


def run(runs: Path, out: Path, *arguments: str) -> int:
    return main(["--runs", str(runs), "--out", str(out), "--no-speed", *arguments])


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("name", CONFIGS)
def test_exported_files_obey_the_contract(name: str, tmp_path: Path) -> None:
    checkpoint = save_run(tmp_path / "runs", name)
    out = tmp_path / "models"
    assert run(tmp_path, out, "--checkpoint", str(checkpoint)) == 0
    config = CONFIGS[name]
    assert files(out) == sorted(["default.onnx", f"{config.name}.onnx"])
    model = Model.open(str(out / f"{config.name}.onnx"), device="cpu")
    assert model.inputs == dict(config.inputs)
    assert model.labels == config.labels
    scores, labels = model.run({n: np.zeros((5, w), np.float32) for n, w in config.inputs}, k=20)
    assert scores.shape == labels.shape == (5, 20)
    assert (np.diff(scores, axis=1) <= 0).all()
    report = json.loads(model.metadata["yt8m.parity"])
    assert report["pytorch"]["max_difference"] <= 1e-5
    assert report["pytorch"]["batches"] == [1, 2, 3, 17, 256]
    assert json.loads(model.metadata["yt8m.operators"]) == []


def test_two_folders_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for folder in ("a", "somewhere/else"):
        here = tmp_path / folder
        here.mkdir(parents=True)
        monkeypatch.chdir(here)
        save_run(Path("runs"), "bilstm")
        assert main(["--model", "bilstm", "--no-speed"]) == 0
        contents.append((here / "models/bilstm.onnx").read_bytes())
    assert contents[0] == contents[1]
    for trace in (b"/home", b"/root", str(tmp_path).encode(), b".py"):
        assert trace not in contents[0]


def test_broken_weights_leave_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaking(graph: Graph) -> Graph:
        good = original(graph)
        dense = good.ops["classify"]
        dense.values["bias"][7] += 0.01
        return good

    monkeypatch.setattr("export.build.reduce", breaking)
    save_run(tmp_path / "runs", "dmrnet")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "dmrnet") == 11
    assert files(tmp_path / "models") == []
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for size in (1, 2, 3, 17, 256):
        assert f"batch of {size}: " in message


def test_a_failed_gate_leaves_the_previous_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_run(tmp_path / "runs", "dmrnet")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "dmrnet") == 0
    before = (tmp_path / "models/dmrnet.onnx").read_bytes()
    monkeypatch.setattr("export.parity.BOUND", -1.0)
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "dmrnet") == 11
    assert (tmp_path / "models/dmrnet.onnx").read_bytes() == before
    assert files(tmp_path / "models") == ["default.onnx", "dmrnet.onnx"]


def test_every_file_passes_the_full_check(tmp_path: Path) -> None:
    save_run(tmp_path / "runs", "bilstm-4-steps")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "bilstm") == 0
    model = onnx.load(tmp_path / "models/bilstm.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert "LSTM" in {node.op_type for node in model.graph.node}
    names = [tensor.name for tensor in model.graph.initializer]
    read = {name for node in model.graph.node for name in node.input}
    assert set(names) <= read, "an initialiser that nothing reads"
    assert len({tensor.SerializeToString() for tensor in model.graph.initializer}) == len(names)


def test_no_such_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm") == 6
    assert "no such checkpoint" in capsys.readouterr().err
    assert files(tmp_path / "models") == []


def test_a_half_written_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_run(tmp_path / "runs", "lstm")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm") == 6
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unwritable_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "runs", "lstm")
    (tmp_path / "models").write_text("a file where the folder should be")
    assert run(tmp_path / "runs", tmp_path / "models", "--model", "lstm") == 8
    assert capsys.readouterr().err.count("\n") == 1
