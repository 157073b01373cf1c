"""Tables in Markdown, as the docs have them, row by row as they are known: a run that is cut off leaves what it had."""

from __future__ import annotations


def print_header(*cells: str) -> None:
    """The first two lines of a table."""
    print_row(*cells)
    print_row(*("---" for _ in cells))


def print_row(*cells: str) -> None:
    """One more line of it."""
    print(f"| {' | '.join(cells)} |", flush=True)
