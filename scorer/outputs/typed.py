"""Values out of JSON that somebody may have damaged: of the type that is expected, or TypeError or ValueError."""

from __future__ import annotations

from scorer.inputs.source import FileStat


def text_of(value: object) -> str:
    """`value`, which is a string."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def number_of(value: object) -> int:
    """`value`, which is a whole number."""
    if type(value) is not int:  # a bool is an int too
        raise TypeError(f"{value!r} is no whole number")
    return value


def count_of(value: object) -> int:
    """`value`, which is a whole number of at least 0."""
    if (number := number_of(value)) < 0:
        raise ValueError(f"{number} is less than none")
    return number


def float_of(value: object) -> float:
    """`value`, which is a number."""
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def stat_of(size: object, version: object) -> FileStat:
    """What a source says of itself."""
    return FileStat(count_of(size), version if isinstance(version, str) else number_of(version))
