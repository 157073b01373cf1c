"""What every test shares: Hypothesis without deadlines, and in CI the same examples every time."""

from __future__ import annotations

import os

import hypothesis

hypothesis.settings.register_profile("yt8m", deadline=None, print_blob=True, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("yt8m")
