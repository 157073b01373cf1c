"""The compiled loops refuse sizes that do not belong to the bytes they come with, which they would read past."""

from __future__ import annotations

import numpy as np
import pytest

from tests.loops import needs_both

LABELS, SCORES = np.zeros((2, 3), np.int64), np.zeros((2, 3), np.float32)


@needs_both
@pytest.mark.parametrize("sizes", [[1, 5], [-1, 2], [2**62, 2**62], [5, -1]])
def test_sizes_that_do_not_fit_are_refused(sizes: list[int]) -> None:
    from scorer.kernels import native

    given = np.array(sizes, np.int64)
    for call in (
        lambda: native.id_keys(b"abcd", given),
        lambda: native.format_rows(b"abcd", given, LABELS, SCORES),
        lambda: native.metric_records(LABELS, SCORES, b"abcd", given),
        lambda: native.format_rows(b"abcd", np.array([2, 2]), LABELS, SCORES[:1]),
        lambda: native.metric_records(LABELS[:1], SCORES, b"abcd", np.array([2, 2])),
    ):
        with pytest.raises(ValueError, match=r"other sizes|no such rows"):
            call()
