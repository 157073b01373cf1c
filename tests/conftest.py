"""What every test shares: Hypothesis without deadlines, in CI always the same examples; SIGINT heeded; no telemetry."""

from __future__ import annotations

import os
import signal

import hypothesis
import pytest

from tests.cuda_stub import CudaStub

hypothesis.settings.register_profile("yt8m", deadline=None, print_blob=True, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("yt8m")

# Run in a shell's background the tests inherit SIGINT ignored, and so would the commands that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # some tests import ONNX Runtime by themselves


@pytest.fixture(scope="session")
def cuda_stub(tmp_path_factory: pytest.TempPathFactory) -> CudaStub:
    """Stand-ins for NVIDIA's libraries, for tests marked `needs_provider`."""
    from tests.cuda_stub.build import build

    folder = tmp_path_factory.mktemp("cuda_stub")
    build(folder)
    return CudaStub(folder)
