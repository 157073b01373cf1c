"""For all tests of export: on a slow machine a phase may take longer than two seconds, and is not to say so."""

from __future__ import annotations

import pytest

from scorer.system import phases


@pytest.fixture(autouse=True)
def without_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "FIRST_SECONDS", 3600.0)
