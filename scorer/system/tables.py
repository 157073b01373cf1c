"""Tables for a person, as plain text. A cell is never broken: columns that do not fit stand below, in another part."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Sequence

from scorer.errors import printable

_GAP = "  "
_NO_TERMINAL = 120


def terminal_width() -> int:
    """Columns of the terminal that standard output is, or of COLUMNS; 120 where there is neither."""
    return shutil.get_terminal_size((_NO_TERMINAL, 24)).columns


def format_table(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lines of a table with one cell per column in each row, the first column to the left and the others to the right.

    Where `width` has no room for all columns, the others follow below, beside the first column once more. One column
    beside the first is shown in any width.
    """
    cells = [[printable(cell) for cell in row] for row in [columns, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines: list[str] = []
    for part in _parts(widths, width):
        lines += [""] if lines else []
        lines += [_line(row, widths, part) for row in cells]
        lines.insert(len(lines) - len(rows), _GAP.join("-" * widths[i] for i in part))
    return lines


def paragraph(text: str, width: int) -> list[str]:
    """Lines of running text, broken between words alone; those after the first are indented."""
    return textwrap.wrap(printable(text), width, subsequent_indent=_GAP, break_long_words=False, break_on_hyphens=False)


def _parts(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns of each part."""
    parts: list[list[int]] = [[0]]
    room = width - widths[0]
    for column in range(1, len(widths)):
        needed = len(_GAP) + widths[column]
        if needed > room and len(parts[-1]) > 1:
            parts.append([0])
            room = width - widths[0]
        parts[-1].append(column)
        room -= needed
    return parts


def _line(row: Sequence[str], widths: Sequence[int], part: Sequence[int]) -> str:
    cells = [row[i].rjust(widths[i]) if i else row[i].ljust(widths[i]) for i in part]
    return _GAP.join(cells).rstrip()
