"""What every test shares: Hypothesis without deadlines, in CI the same examples every time, SIGINT heeded."""

from __future__ import annotations

import os
import signal

import hypothesis

hypothesis.settings.register_profile("yt8m", deadline=None, print_blob=True, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("yt8m")

# Run in a shell's background the tests inherit SIGINT ignored, and so would the commands that they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
