"""Phases tell a log what is done and how long it takes, and say nothing of what is over at once."""

from __future__ import annotations

import re
import time

import pytest

from scorer.system import phases
from scorer.system.phases import phase, portion


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phases, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(phases, "LINE_SECONDS", 0.03)


def lines_of(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    """Standard error once it has so many lines."""
    said = ""
    while said.count("\n") < count:
        time.sleep(0.01)
        said += capsys.readouterr().err
    return said.splitlines()


def test_a_log_gets_lines_with_time_share_and_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    with phase("export", "models/a\nb.onnx: checking") as at:
        (first, *_) = lines_of(capsys, 1)
        at(0.5)
        last = lines_of(capsys, 2)[-1]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  export: models/a\\nb\.onnx: checking", first)
    assert re.fullmatch(r".*  export: models/a\\nb\.onnx: checking, 50%, 0:00:00 left", last)


def test_what_is_over_at_once_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(phases, "FIRST_SECONDS", 60.0)
    with phase("export", "reading") as at:
        at(1.0)
    assert capsys.readouterr().err == ""


def test_an_error_passes_through(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="wrong"), phase("export", "reading"):
        raise ValueError("wrong")


def test_a_terminal_gets_a_line_that_goes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with phase("export", "[bold]reading[/bold]"):
        said = "".join(lines_of(capsys, 0))
    said += capsys.readouterr().err
    assert "export: [bold]reading[/bold]" in said
    assert said.endswith("\x1b[2K"), "it stands still"


def test_a_part_of_a_phase() -> None:
    shares: list[float] = []
    at = portion(portion(shares.append, 0.5, 1.0), 0.0, 0.5)
    at(0.0)
    at(1.0)
    assert shares == [0.5, 0.75]
