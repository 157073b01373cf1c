"""Tables and paragraphs keep every number whole, whatever the width."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer.system.tables import format_table, paragraph, terminal_width

COLUMNS = ("model", "MAP@10", "parameters", "videos/s")
ROWS = [("bilstm", "0.8017", "34,748,950", "19,023"), ("lstm.int8.onnx", "0.7950", "27,000,000", "28,719")]


def test_a_table_with_room() -> None:
    assert format_table(COLUMNS, ROWS, 80) == [
        "model           MAP@10  parameters  videos/s",
        "--------------  ------  ----------  --------",
        "bilstm          0.8017  34,748,950    19,023",
        "lstm.int8.onnx  0.7950  27,000,000    28,719",
    ]


def test_what_does_not_fit_stands_below() -> None:
    assert format_table(COLUMNS, ROWS, 40) == [
        "model           MAP@10  parameters",
        "--------------  ------  ----------",
        "bilstm          0.8017  34,748,950",
        "lstm.int8.onnx  0.7950  27,000,000",
        "",
        "model           videos/s",
        "--------------  --------",
        "bilstm            19,023",
        "lstm.int8.onnx    28,719",
    ]


@given(st.integers(1, 200), st.lists(st.integers(0, 10**12), min_size=1, max_size=9))
def test_every_cell_is_there_whole(columns: int, numbers: list[int]) -> None:
    cells = [f"{number:,}" for number in numbers]
    lines = format_table(["name", *(f"c{i}" for i in range(len(cells)))], [["row", *cells]], columns)
    shown = [word for line in lines if line.startswith("row") for word in line.split()[1:]]
    assert shown == cells
    assert all(len(line) <= max(columns, 4 + 2 + 17) for line in lines)


def test_a_table_without_rows_and_one_of_one_column() -> None:
    assert format_table(["a", "b"], [], 80) == ["a  b", "-  -"]
    assert format_table(["a"], [["x"]], 80) == ["a", "-", "x"]


def test_control_characters_stay_in_their_cell() -> None:
    assert format_table(["a", "b"], [["x\ny", "1"]], 80)[2] == "x\\ny  1"


def test_a_paragraph_breaks_between_words() -> None:
    text = "models/a-very-long-name.onnx: MAP@10 0.8017 -> 0.8016, 99.97% of the top-10"
    lines = paragraph(text, 30)
    assert " ".join(line.strip() for line in lines) == text
    assert lines[1].startswith("  ")


def test_the_width_is_the_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "57")
    assert terminal_width() == 57
