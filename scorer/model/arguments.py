"""What Python programs give as numbers and arrays, checked: each mistake is one UsageError that names it."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from scorer.errors import UsageError


def check_whole_number(name: str, value: Any, least: int, most: int, what: str = "") -> None:
    """Raise UsageError unless `value` is an integer from `least` to `most`; `what` these limits are."""
    if not _is_whole(value) or not least <= value <= most:
        remedy = f"choose {least} to {most:,}" + (f", {what}" if what else "")
        raise UsageError(f"{name} is {value!r}", remedy=remedy)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def as_features(name: str, values: Any) -> NDArray[np.float32]:
    """`values` as float32, of whatever shape. Raises UsageError where they are no numbers."""
    try:
        array = np.asarray(values)
    except ValueError:
        raise UsageError(f"the rows of {name} differ in length", remedy="give numbers (n, width)") from None
    if array.dtype.kind not in "biuf":
        raise UsageError(f"{name} is of {array.dtype.type.__name__}, not of numbers", remedy="give numbers (n, width)")
    with np.errstate(over="ignore"):  # becomes infinite, which is for the caller to judge
        return np.asarray(array, np.float32, order="C")


def check_finite(name: str, values: NDArray[np.float32]) -> None:
    """Raise UsageError where a number is NaN or, as float32, infinite."""
    if not np.isfinite(values).all():
        raise UsageError(f"{name} has NaN or infinity in it")
