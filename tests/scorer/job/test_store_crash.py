"""The short form of tests/scorer/job/store_crash.py: jobs from a store to a store, killed at random moments."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.usefixtures("s3_url")
def test_kills_from_store_to_store_lose_nothing_and_leave_nothing(tmp_path: Path) -> None:
    from tests.scorer.job.store_crash import crash

    tally = crash(tmp_path, kills=6)
    assert tally.kills == 6
    assert tally.compared >= 3
