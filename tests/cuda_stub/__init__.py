"""The real CUDA provider of onnxruntime-gpu on a machine without a GPU: NVIDIA's libraries are stand-ins.

    @needs_provider
    def test_something(cuda_stub: CudaStub) -> None:
        done = cuda_stub.run("-m", "scorer", shard, "-o", output, "--device", "cuda")
        assert not done.calls("cudaStreamBeginCapture")

The provider loads, partitions the graph, allocates, copies, makes handles and launches kernels; the stand-ins log each
call with its thread, refuse what CUDA forbids while a graph is captured, and fail where they are told to. They compute
nothing, so no arithmetic can be judged: TopK alone answers, the same for every video.

YT8M_CUDA_PYTHON names the Python of an environment with onnxruntime-gpu and the scorer's packages, without NVIDIA's
(.ci/run makes it). A C compiler builds the stand-ins, once a test run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("YT8M_CUDA_PYTHON", "")
COMPILER = shutil.which("cc")

needs_provider = pytest.mark.skipif(
    not PYTHON or COMPILER is None,
    reason="there is no C compiler" if PYTHON else "YT8M_CUDA_PYTHON names no environment with onnxruntime-gpu",
)


@dataclass(frozen=True)
class Call:
    """One call of a stand-in. fields: its sizes, kernels, streams and so on, as the C sources print them."""

    thread: int
    name: str
    fields: dict[str, str]


@dataclass(frozen=True)
class StubRun:
    """A finished process and what it called, in order."""

    returncode: int
    stdout: str
    stderr: str
    log: list[Call]

    def calls(self, name: str) -> list[Call]:
        return [call for call in self.log if call.name == name]

    def kinds(self) -> Counter[str]:
        """How many calls of each kind that can be made to fail: `failing` counts the same way."""
        return Counter(next(iter(call.fields)) for call in self.calls("KIND"))


@dataclass(frozen=True)
class CudaStub:
    """The stand-ins, built into a folder."""

    folder: Path

    def run(self, *arguments: str, failing: str = "", **variables: str) -> StubRun:
        """Python with `arguments`, on the stand-ins.

        Args:
            failing: "KIND:N:CODE" has call number N of a kind give that CUDA error.
            variables: CUDA_STUB_... as the C sources read them, and others of the environment.
        """
        log = self.folder / "calls.log"
        log.unlink(missing_ok=True)
        environment = {
            **os.environ,
            **variables,
            "LD_LIBRARY_PATH": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "CUDA_STUB_LOG": str(log),
            "CUDA_STUB_FAIL": failing,
        }
        command = [PYTHON, *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        lines = log.read_text().splitlines() if log.exists() else []
        return StubRun(done.returncode, done.stdout, done.stderr, list(map(_call, lines)))


def _call(line: str) -> Call:
    thread, name, *fields = line.split()
    return Call(int(thread), name, dict(field.partition("=")[::2] for field in fields))
