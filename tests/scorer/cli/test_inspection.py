"""`yt8m inspect`: closed pipes, narrow terminals and odd metadata end in one line or none, never in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from scorer.cli.inspection import main
from scorer.errors import BROKEN_PIPE
from tests.onnx_models import build_model, save_model

INPUTS = {"mean_rgb": 8, "mean_audio": 4}
DEEP = "[" * 200_000


def save_with(path: Path, key: str, value: str) -> str:
    model = build_model(inputs=INPUTS, labels=3)
    onnx.helper.set_model_props(model, {**{e.key: e.value for e in model.metadata_props}, key: value})
    onnx.save(model, path)
    return str(path)


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_closed_pipe_ends_quietly(option: list[str], tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", inputs=INPUTS, labels=3)
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "scorer.cli.inspection", path, *option]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (BROKEN_PIPE, b"")


@pytest.mark.parametrize("option", [[], ["--json"]])
def test_an_ascii_terminal(option: list[str], tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", inputs=INPUTS, labels=3, names=["Fußball", "b", "c"])
    command = [sys.executable, "-m", "scorer.cli.inspection", path, *option]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"}, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    if option:
        assert json.loads(done.stdout)["metadata"]["names"][0] == "Fußball"
    else:
        assert b"Fu\\xdfball" in done.stdout


@pytest.mark.parametrize("key", ["yt8m.names", "yt8m.metrics"])
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_deeply_nested_metadata(
    key: str, option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([save_with(tmp_path / "m.onnx", key, DEEP), *option]) == 6
    captured = capsys.readouterr()
    assert "nested too deeply" in captured.err
    assert (captured.out, captured.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(("half", "kind"), [(False, "float32"), (True, "float16")])
def test_reads_has_the_type_of_the_inputs(
    half: bool, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save_model(tmp_path / "m.onnx", inputs=INPUTS, labels=3, half=half)
    assert main([path]) == 0
    assert f"mean_rgb {kind} [batch, 8], mean_audio {kind} [batch, 4]" in capsys.readouterr().out
    assert main([path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == kind
