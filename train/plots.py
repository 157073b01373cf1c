"""Figures with Matplotlib's own defaults."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def figure(width: float, height: float) -> Iterator[Any]:
    """A figure of so many inches, for writing to a file, and Matplotlib's defaults while it is drawn.

    Matplotlib reads a `matplotlibrc` of the working folder when it is imported, which may be anyone's, and have LaTeX
    run: it is imported from the root folder, and its defaults are set.
    """
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.chdir("/")
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        os.fchdir(here)
        os.close(here)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)
        yield made
