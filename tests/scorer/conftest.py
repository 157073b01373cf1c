"""What tests of several rooms share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from scorer.inputs import remote
from tests.stores import s3
from tests.stores.proxy import google_environment, proxy


@pytest.fixture
def each_batch_on_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a chunk of each batch, and not of several small ones."""
    monkeypatch.setattr("scorer.pipeline.predict.COALESCED_VIDEOS", 1)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The address of an S3 server on loopback."""
    pytest.importorskip("moto", reason="moto is not installed: no S3 server to test against")
    pytest.importorskip("obstore", reason="obstore is not installed: nothing reads from an S3 server")
    with s3.running() as url:
        yield url


@pytest.fixture
def s3_server(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The same, as the store that s3:// means in this process and those that it starts."""
    for name, value in s3.environment(s3_url).items():
        monkeypatch.setenv(name, value)
    remote._object_store.cache_clear()
    yield s3_url
    remote._object_store.cache_clear()


@pytest.fixture
def gs_server(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of the S3 server, whose buckets gs:// means too."""
    with proxy(s3_server, lambda method, path: "") as url:
        for name, value in google_environment(url, tmp_path).items():
            monkeypatch.setenv(name, value)
        remote._object_store.cache_clear()
        yield s3_server
