"""Standard error: no escape codes where they are not wanted, and no number broken by a narrow terminal."""

from __future__ import annotations

import io
import os
import re
import sys

import pytest

from scorer.system.terminal import print_lines, takes_escapes


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


@pytest.mark.parametrize(("name", "value"), [("TERM", "dumb"), ("TERM", None), ("NO_COLOR", "1")])
def test_escape_codes_only_where_they_are_wanted(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    assert takes_escapes(terminal)
    assert not takes_escapes(io.StringIO())
    assert not takes_escapes(None)
    monkeypatch.delenv(name, raising=False)
    if value is not None:
        monkeypatch.setenv(name, value)
    assert not takes_escapes(terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    print_lines([("model", "x"), ("speed", "1,000 videos/s")])
    assert terminal.getvalue() == "model  x\nspeed  1,000 videos/s\n"


@pytest.mark.parametrize("columns", [80, 50, 30])
def test_no_number_is_broken(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((columns, 24)))
    monkeypatch.setattr(sys, "stderr", terminal)
    numbers = [f"{10**power:,}" for power in range(8)]
    print_lines([("records", " + ".join(numbers)), ("quality", "MAP@10 0.7400  GAP@20 0.8100")])
    text = re.sub("\033\\[[0-9]*m", "", terminal.getvalue())
    assert all(len(line) <= columns for line in text.splitlines())
    assert set(numbers) <= set(text.split())
    assert {"0.7400", "0.8100"} <= set(text.split())


def test_what_is_no_terminal_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    print_lines([("records", "1 " * 300)])
    assert stream.getvalue().count("\n") == 1
