"""Label names from a vocabulary, and `yt8m inspect`, which shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.cli import main
from export.names import read_names
from scorer.cli.inspection import main as inspect
from scorer.errors import InputError
from tests.export.small import save_run

HEADER = "Index,TrainVideoCount,KnowledgeGraphId,Name,WikiUrl\n"


def vocabulary(path: Path, labels: int) -> Path:
    rows = [f'{i},9,/m/{i},"Name, {i}",\n' for i in reversed(range(1, labels))]
    path.write_text(HEADER + "".join(rows) + "0,9,/m/zero,,\n")
    return path


def test_names_stand_by_index(tmp_path: Path) -> None:
    assert read_names(vocabulary(tmp_path / "v.csv", 3), 3) == ["/m/zero", "Name, 1", "Name, 2"]


@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", HEADER + "x,1,/m/1,One,\n", HEADER, HEADER + "5,1,/m/1,One,\n"])
def test_what_is_no_vocabulary_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "v.csv").write_text(content)
    with pytest.raises(InputError, match=r"v\.csv"):
        read_names(tmp_path / "v.csv", 1)


def test_no_such_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_names(tmp_path / "v.csv", 1)


def test_inspect_shows_what_export_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_run(tmp_path / "runs", "bilstm")
    names = vocabulary(tmp_path / "v.csv", 40)
    arguments = ["--model", "bilstm", "--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--no-speed"]
    assert main([*arguments, "--vocabulary", str(names)]) == 0
    capsys.readouterr()
    assert inspect([str(tmp_path / "bilstm.onnx")]) == 0
    shown = capsys.readouterr().out
    for part in (
        "bilstm, fp32",
        "mean_rgb float32 [batch, 24]",
        "40, such as /m/zero, Name, 1",
        "parity.pytorch.bound",
    ):
        assert part in shown
    assert inspect([str(tmp_path / "bilstm.onnx"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["inputs"] == {"mean_rgb": 24, "mean_audio": 6}
    assert facts["metadata"]["names"][1] == "Name, 1"
    assert facts["metadata"]["config"]["hidden"] == 12


def test_inspect_of_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect([str(tmp_path / "none.onnx")]) == 6
    assert capsys.readouterr().err.count("\n") == 1
