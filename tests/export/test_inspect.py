"""`yt8m inspect` shows what `export` wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.cli import main
from scorer.cli.inspection import main as inspect
from tests.export.small import save_run


def test_inspect_shows_what_export_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "runs", "bilstm")
    names = tmp_path / "v.csv"
    rows = "".join(f"{i},Name {i}\n" for i in range(40))
    names.write_text("Index,Name\n" + rows)
    arguments = ["--model", "bilstm", "--runs", str(tmp_path / "runs"), "--output", str(tmp_path), "--no-speed"]
    assert main([*arguments, "--vocabulary", str(names)]) == 0
    capsys.readouterr()
    assert inspect([str(tmp_path / "bilstm.onnx")]) == 0
    shown = capsys.readouterr().out
    for part in (
        "bilstm, fp32",
        "mean_rgb float32 [batch, 24]",
        "40, such as Name 0, Name 1",
        "parity.pytorch.bound",
    ):
        assert part in shown
    assert inspect([str(tmp_path / "bilstm.onnx"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["inputs"] == {"mean_rgb": 24, "mean_audio": 6}
    assert facts["metadata"]["names"][1] == "Name 1"
    assert facts["metadata"]["config"]["hidden"] == 12


def test_inspect_of_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect([str(tmp_path / "none.onnx")]) == 6
    assert capsys.readouterr().err.count("\n") == 1
