"""The two sets of inner loops: compiled, and in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import pytest

from scorer.evaluation import duplicates, metrics
from scorer.inputs import blocks
from scorer.kernels import compiled
from scorer.outputs import formats

HERE = ["compiled", "numpy"] if compiled.native else ["numpy"]
"""Those that this installation has."""


@contextmanager
def using(loops: str) -> Iterator[None]:
    """Use these, in this process."""
    native = compiled.native if loops == "compiled" else None
    with ExitStack() as stack:
        for module in (blocks, metrics, formats, duplicates):
            stack.enter_context(mock.patch.object(module, "native", native))
        yield


@pytest.fixture(params=["compiled", "numpy"], scope="module", autouse=True)
def loops(request: pytest.FixtureRequest) -> Iterator[None]:
    """To be imported by modules whose tests are to run with both."""
    if request.param not in HERE:
        pytest.skip("the package was installed without a C compiler")
    with using(request.param):
        yield
