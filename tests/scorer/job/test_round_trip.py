"""A job from a store to itself, as tests/stores/round_trip.py has it done in stores that are not at hand here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stores import s3


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_job_from_a_store_to_itself(
    request: pytest.FixtureRequest, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    client = s3.client(request.getfixturevalue(f"{scheme}_server"))
    from tests.stores.round_trip import round_trip

    assert len(round_trip(f"{scheme}://{s3.BUCKET}/some", tmp_path)) == 5
    assert "Contents" not in client.list_objects_v2(Bucket=s3.BUCKET, Prefix="some")
