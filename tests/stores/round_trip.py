"""Try a store by hand: a job from it to it, with the credentials of the environment.

    python -m tests.stores.round_trip s3://bucket/some/folder

An emulator's endpoint is the environment's, too. Shards go to a new folder there, and are scored as a folder, by a
pattern and compressed; outputs are written in one request and by multipart upload; an object is replaced while it is
read. All is compared with local files, and removed.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
import uuid
from contextlib import closing
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

from scorer.errors import InputError
from scorer.inputs.discover import find_shards
from scorer.inputs.object_store import open_store
from scorer.job.spec import Job
from scorer.outputs import object_sink
from tests.scorer.fakes import do_as_found, write_shards


def round_trip(address: str, folder: Path) -> list[str]:
    """What was done; local files go to `folder`. Raises AssertionError where anything is not as it is locally."""
    import obstore

    place = f"{address.rstrip('/')}/{uuid.uuid4().hex}"
    parts = urlsplit(place)
    store = open_store(f"{parts.scheme}://{parts.netloc}")
    keys = _RoundTripKeys(store, parts.path.lstrip("/"))
    try:
        return _round_trip(place, keys, folder)
    finally:
        obstore.delete(store, keys.all())


class _RoundTripKeys:
    """The objects below a prefix."""

    def __init__(self, store: Any, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def put(self, name: str, content: bytes) -> None:
        import obstore

        obstore.put(self._store, f"{self._prefix}/{name}", content, use_multipart=False)

    def get(self, name: str) -> bytes:
        import obstore

        return bytes(obstore.get(self._store, f"{self._prefix}/{name}").bytes())

    def all(self) -> list[str]:
        import obstore

        return [entry["path"] for some in obstore.list(self._store, self._prefix) for entry in some]


def _round_trip(place: str, keys: _RoundTripKeys, folder: Path) -> list[str]:
    paths = write_shards(folder / "shards", [3000, 200, 500])
    contents = {Path(path).name: Path(path).read_bytes() for path in paths}
    for name, content in contents.items():
        keys.put(f"plain/{name}", content)
        keys.put(f"packed/{name}.gz", gzip.compress(content))
    do_as_found(Job(find_shards(paths), str(folder / "local.csv")))
    expected, done = (folder / "local.csv").read_bytes(), []
    for what in ("plain", "plain/**/*.tfrecord", "packed"):
        do_as_found(Job(find_shards([f"{place}/{what}"]), f"{place}/out.csv"))
        assert keys.get("out.csv") == expected
        done.append(f"scored {what}: {len(expected)} bytes, as from local files")
    with patch.object(object_sink, "ONE_REQUEST_BYTES", 0), patch.object(object_sink, "_PART_BYTES", 5 << 20):
        do_as_found(Job(find_shards([f"{place}/plain"]), f"{place}/out.csv", resume_policy="restart"))
    assert keys.get("out.csv") == expected
    done.append("an older output replaced by multipart upload")
    (source,) = find_shards([f"{place}/plain/a.tfrecord"])
    with closing(source.open()) as reader:
        keys.put("plain/a.tfrecord", contents["a.tfrecord"][::-1])
        try:
            reader.check_unchanged()
        except InputError as error:
            done.append(f"an object replaced while it is read is seen: {error.message.partition(': ')[2]}")
        else:
            raise AssertionError("an object replaced while it is read was not seen")
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    with tempfile.TemporaryDirectory() as folder:
        print(*round_trip(parser.parse_args().address, Path(folder)), sep="\n")


if __name__ == "__main__":
    main()
