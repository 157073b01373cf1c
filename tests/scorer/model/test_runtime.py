"""ONNX Runtime: packages that are absent or broken are named, and it neither phones home nor prints."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scorer.errors import DeviceError
from scorer.model import runtime
from scorer.model.find import BUNDLED
from scorer.model.model import Model
from tests.onnx_models import save_model

ROOT = Path(__file__).parents[3]
SMALL = {"mean_rgb": 8}
UPLOADS_AFTER_SECONDS = 9
"""When ONNX Runtime 1.32 first looks its telemetry host up."""


def test_without_a_runtime_the_command_that_installs_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(DeviceError, match=r"is not installed; pip install '.*\[cpu\]'"):
        runtime.import_runtime()


def test_what_removing_one_of_two_runtimes_leaves_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime_gpu-1.28.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace())
    with pytest.raises(DeviceError, match="onnxruntime-gpu does not import: the package is incomplete; pip uninstall"):
        runtime.import_runtime()


def test_both_runtimes_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("onnxruntime-1.30.0", "onnxruntime_gpu-1.28.0", "onnxruntime_extensions-0.1"):
        (tmp_path / f"{name}.dist-info").mkdir()
    path = save_model(tmp_path / "m.onnx", inputs=SMALL, labels=30)
    runtime.import_runtime()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert runtime.installed_runtimes() == ["onnxruntime", "onnxruntime-gpu"]
    assert Model.open(path).notes == [runtime.BOTH_INSTALLED]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DeviceError, match="both installed and overwrite each other; pip uninstall -y onnxruntime"):
        runtime.import_runtime()


# ---- what it does by itself

HOLD_A_MODEL = """
import sys, time
from scorer.api import Scorer
scorer = Scorer(sys.argv[1])
time.sleep(float(sys.argv[2]))
"""

# Notes what a program asks of the network, and lets none of it through.
NO_NETWORK = r"""
#include <fcntl.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static void note(const char *text) {
    int file = open(NOTES, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (write(file, text, strlen(text)) < 0 || write(file, "\n", 1) < 0) _exit(99);
    close(file);
}
int getaddrinfo(const char *host, const char *s, const struct addrinfo *h, struct addrinfo **r) {
    note(host ? host : "?");
    return EAI_FAIL;
}
int connect(int socket, const struct sockaddr *address, socklen_t size) {
    if (address->sa_family != AF_UNIX) note("connect");
    return -1;
}
"""


def no_network(folder: Path) -> tuple[Path, Path]:
    """A library to preload, and the file that it notes look-ups and connections in."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("watching a process's look-ups takes Linux and a C compiler")
    source, library, notes = folder / "no_network.c", folder / "no_network.so", folder / "notes"
    source.write_text(NO_NETWORK)
    subprocess.run([compiler, "-shared", "-fPIC", f'-DNOTES="{notes}"', "-o", library, source], check=True)
    return library, notes


def test_it_neither_looks_a_host_up_nor_writes_to_the_users_home(tmp_path: Path) -> None:
    library, notes = no_network(tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    left_out = {"CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"HOME": str(home), "LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-c", HOLD_A_MODEL, str(BUNDLED), str(UPLOADS_AFTER_SECONDS + 2)]
    done = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert not list(home.iterdir())
    assert not notes.exists(), notes.read_text()


def test_a_user_may_decide_about_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    runtime.import_runtime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    runtime.import_runtime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"


LOG = """
import sys
from scorer.model.runtime import import_runtime
import_runtime().InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])  # k, an input with a default: warns
"""


def test_its_log_is_silent() -> None:
    program = [sys.executable, "-c", LOG, str(BUNDLED)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_keeps_cuda_from_opening_is_said(tmp_path: Path) -> None:
    library = tmp_path / "capi" / "libonnxruntime_providers_cuda.so"
    library.parent.mkdir()
    library.write_bytes(b"no library")
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    listed = SimpleNamespace(
        __file__=str(tmp_path / "__init__.py"),
        get_available_providers=lambda: ["CUDAExecutionProvider"],
        InferenceSession=lambda *arguments, **options: session,
        SessionOptions=runtime.import_runtime().SessionOptions,
    )
    with pytest.raises(DeviceError, match=r"cuda:0 does not open: .*libonnxruntime_providers_cuda.so: file too short;"):
        runtime.open_cuda(listed, b"", 0)
