"""The doctor: healthy, or every problem named together with the command that fixes it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest

from scorer.cli import doctor
from scorer.errors import DeviceError
from scorer.kernels import loops
from scorer.model import driver, find, runtime
from scorer.system import packages
from tests.onnx_models import save_model

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model in the place of the bundled one."""
    path = Path(save_model(tmp_path / "default.onnx", inputs={"mean_rgb": 8}, labels=12))
    monkeypatch.setattr(find, "BUNDLED", path)
    return path


def report(capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = doctor.main([])
    return code, capsys.readouterr().out


def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = report(capsys)
    if "onnxruntime-gpu" in runtime.installed_runtimes():
        pytest.skip("whether onnxruntime-gpu is healthy depends on the machine")
    assert code == 0, text
    assert f"onnxruntime {onnxruntime.__version__}" in text
    assert "CPUExecutionProvider: opens and computes" in text
    assert "bundled model: tiny fp32 opens and predicts 12 labels" in text
    assert "cores usable" in text
    assert f"decoder: {'in NumPy' if loops.missing else 'compiled'}" in text
    assert all(line.startswith("ok ") for line in text.splitlines())


def test_no_runtime(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> Any:
        raise DeviceError("ONNX Runtime is not installed", remedy="pip install 'yt8m-edge[cpu]'")

    monkeypatch.setattr(runtime, "import_runtime", absent)
    code, text = report(capsys)
    assert code == DeviceError.exit_code
    assert "PROBLEM onnx runtime: ONNX Runtime is not installed; fix: pip install 'yt8m-edge[cpu]'" in text


def test_both_runtimes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "installed_runtimes", lambda: ["onnxruntime", "onnxruntime-gpu"])
    code, text = report(capsys)
    assert code == DeviceError.exit_code
    assert "both installed and overwrite each other; fix: pip uninstall -y onnxruntime onnxruntime-gpu && pip" in text


def gpu_runtime(opened_as: str) -> Any:
    """onnxruntime that lists CUDA, and opens it or quietly leaves it out."""

    def session(model: Any, options: Any, providers: Any, enable_fallback: int) -> Any:
        real = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        if providers == ["CPUExecutionProvider"]:
            return real
        return SimpleNamespace(get_providers=lambda: [opened_as], get_provider_graph_assignment_info=list, run=real.run)

    return SimpleNamespace(
        __version__="1.99",
        __file__="/absent/__init__.py",
        InferenceSession=session,
        SessionOptions=onnxruntime.SessionOptions,
        get_available_providers=lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )


@pytest.mark.parametrize(
    ("libraries", "problem"),
    [
        ([], "cuda libraries: no driver, no cudart, no cublas, no cudnn; fix: install NVIDIA's driver, or"),
        (["libcuda.so.1", "libcudart.so.12"], "libcudart.so.12, no cublas, no cudnn; fix: pip uninstall"),
    ],
)
def test_a_provider_that_is_listed_and_does_not_open(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, libraries: list[str], problem: str
) -> None:
    monkeypatch.setattr(runtime, "import_runtime", lambda: gpu_runtime("CPUExecutionProvider"))
    monkeypatch.setattr(doctor, "_loads", lambda name: name in libraries)
    code, text = report(capsys)
    assert code == DeviceError.exit_code
    assert "PROBLEM CUDAExecutionProvider: does not work: cuda:0 does not open" in text
    assert problem in text


def test_a_provider_that_opens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "import_runtime", lambda: gpu_runtime("CUDAExecutionProvider"))
    monkeypatch.setattr(doctor, "_loads", lambda name: True)
    monkeypatch.setattr(driver, "read_driver", lambda: driver.Driver((13, 1), [driver.Gpu("a GPU", 75)]))
    code, text = report(capsys)
    assert code == 0, text
    assert "CUDAExecutionProvider: opens and computes" in text
    assert "driver: for CUDA 13.1" in text
    assert "cuda:0: a GPU, compute capability 7.5" in text


@pytest.mark.parametrize(
    ("listed", "line"),
    [
        (["AzureExecutionProvider"], None),
        (
            ["TensorrtExecutionProvider", "OpenVINOExecutionProvider"],
            "openvino: listed, and not tried; --provider takes",
        ),
    ],
)
def test_other_providers_are_those_that_can_be_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, listed: list[str], line: str | None
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [*listed, "CPUExecutionProvider"])
    _, text = report(capsys)
    assert ("other providers" in text) == (line is not None)
    assert line is None or f"ok      other providers: {line}" in text


@pytest.mark.parametrize("damage", ["absent", "cut short"])
def test_the_bundled_model_is_tried(capsys: pytest.CaptureFixture[str], bundled: Path, damage: str) -> None:
    if damage == "absent":
        bundled.unlink()
    else:
        bundled.write_bytes(bundled.read_bytes()[:-50])
    code, text = report(capsys)
    assert code == DeviceError.exit_code
    assert f"PROBLEM bundled model: {bundled}" in text


def test_missing_packages(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    known = doctor._version
    monkeypatch.setattr(
        doctor, "_version", lambda name: None if name in ("rich", "torch", "yt8m-edge") else known(name)
    )
    code, text = report(capsys)
    assert code == DeviceError.exit_code
    assert "PROBLEM rich: missing; fix: pip install rich" in text
    assert "ok      yt8m-edge: not installed, run from its source" in text
    assert "train and export: without torch" in text
    assert f"{packages.install_command('cpu,train')} for them" in text


def test_the_table_keeps_commands_in_one_piece(bundled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled.unlink()
    written: list[str] = []

    class Terminal:
        encoding = "utf-8"
        isatty = staticmethod(lambda: True)
        write = staticmethod(written.append)
        flush = staticmethod(lambda: None)

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert doctor.main([]) == DeviceError.exit_code
    assert "to fix bundled model: pip install --force-reinstall" in "".join(written)


def test_it_never_imports_torch() -> None:
    code = "import sys; from scorer.cli import doctor; doctor.main([]); sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
