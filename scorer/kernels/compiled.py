"""`native`: the inner loops in C, or None where there are none, and then NumPy gives the same results.

There are none where no C compiler was at hand when the package was installed, and on processors without an
instruction for CRC32C.
"""

from __future__ import annotations

from types import ModuleType

native: ModuleType | None = None
missing = ""
"""Why there are none."""
try:
    import scorer.kernels.native as native  # noqa: F401
except ModuleNotFoundError:
    missing = "no C compiler when it was installed"
except ImportError as error:
    missing = str(error)
