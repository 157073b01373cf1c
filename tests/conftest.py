"""What every test shares: Hypothesis without deadlines, in CI always the same examples; SIGINT heeded; no telemetry."""

from __future__ import annotations

import os
import signal

import hypothesis

hypothesis.settings.register_profile("yt8m", deadline=None, print_blob=True, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("yt8m")

# Run in a shell's background the tests inherit SIGINT ignored, and so would the commands that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # some tests import ONNX Runtime by themselves
