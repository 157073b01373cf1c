"""The two sets of inner loops: compiled, and in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest

from scorer.inputs import readers
from scorer.kernels import loops as module
from scorer.kernels import numpy_loops

INSTALLED = module.active
SETS = {loops.NAME: loops for loops in (INSTALLED, numpy_loops)}
HERE = list(SETS)
"""Those that this installation has."""
needs_both = pytest.mark.skipif(len(HERE) < 2, reason=f"no compiled loops: {module.missing}")


@contextmanager
def using(loops: str) -> Iterator[None]:
    """Use these, in this process."""
    with mock.patch.object(module, "active", SETS[loops]):
        yield


@contextmanager
def shard_by_shard() -> Iterator[None]:
    """Have every shard read by its own reader, and none with others in one compiled call."""
    with mock.patch.object(readers, "plain_files", return_value=None):
        yield


@pytest.fixture(params=["compiled", "numpy"], scope="module", autouse=True)
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """To be imported by modules whose tests are to run with both."""
    if request.param not in HERE:
        pytest.skip(f"no compiled loops: {module.missing}")
    with using(request.param):
        yield
