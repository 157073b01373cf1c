"""Shards in stores, broken on purpose: everything that may go wrong on the way is survived, or said in one line."""

from __future__ import annotations

import base64
import gzip
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from scorer.errors import InputError
from scorer.inputs import http_store, remote
from scorer.inputs.addresses import is_address, redacted
from scorer.inputs.discover import find_shards
from scorer.inputs.object_store import glob_pattern
from scorer.inputs.readers import in_turn
from scorer.inputs.source import Reader
from scorer.job.spec import Job
from tests.scorer.fakes import do_as_found, write_shards
from tests.stores import s3
from tests.stores.object_server import FAULTS, ObjectServer
from tests.stores.proxy import google_environment

CONTENT = np.random.default_rng(0).bytes(100_000)
RANGE = 16_000


@pytest.fixture(autouse=True)
def small_ranges_and_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "RANGE_BYTES", RANGE)
    monkeypatch.setattr(remote, "_FIRST_SECONDS", 0.0001)
    monkeypatch.setenv("NO_PROXY", "*")
    remote._object_store.cache_clear()
    yield
    remote._object_store.cache_clear()


@pytest.fixture
def server() -> ObjectServer:
    return ObjectServer()


@pytest.fixture
def url(server: ObjectServer) -> Iterator[str]:
    with server.running() as url:
        yield url


@pytest.fixture(params=["http", "s3", "gs", "az"])
def folder(request: pytest.FixtureRequest, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a folder, by which each client reaches the same objects at /bucket."""
    if request.param == "http":
        return f"{url}/bucket"
    pytest.importorskip("obstore", reason="obstore is not installed")
    key = base64.b64encode(b"not-shown-secret").decode()
    azure = {"AZURE_ENDPOINT": url, "AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": key}
    environments = {"s3": s3.environment(url), "gs": google_environment(url, tmp_path), "az": azure}
    for name, value in environments[request.param].items():
        monkeypatch.setenv(name, value)
    return f"{request.param}://bucket"


def read_all(address: str, piece: int = 7000) -> bytes:
    (source,) = find_shards([address])
    with closing(source.open()) as reader:
        content = read(reader, source.stat.size, piece)
        reader.check_unchanged()
    return content


def read(reader: Reader, size: int, piece: int = 7000) -> bytes:
    parts, buffer = [], memoryview(bytearray(piece))
    for at in range(0, size, piece):
        parts.append(bytes(buffer[: reader.read_into(at, buffer)]))
    return b"".join(parts)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_for_a_moment_is_survived(server: ObjectServer, folder: str, fault: str) -> None:
    server.put("/bucket/x.tfrecord", CONTENT)
    server.faults.extend([fault, fault, "", fault])
    assert read_all(f"{folder}/x.tfrecord") == CONTENT
    assert not server.faults


def test_every_range_cut_is_continued_from_the_byte_reached(server: ObjectServer, url: str) -> None:
    server.put("/x", CONTENT[:RANGE])
    server.faults.extend(["cut"] * 12)  # more than attempts without progress
    assert read_all(f"{url}/x") == CONTENT[:RANGE]
    starts = [int(wanted[6:].split("-")[0]) for _, _, wanted in server.seen if not wanted.endswith("=0-0")]
    assert starts == sorted(set(starts)), "bytes that had come were asked for again"


@pytest.mark.parametrize(
    ("fault", "says"),
    [("500", "HTTP status 500"), ("cut at once", "cannot be read"), ("ignore range", "the server ignores the range")],
)
def test_what_stays_wrong_is_one_line(server: ObjectServer, url: str, fault: str, says: str) -> None:
    server.put("/x.tfrecord", CONTENT)
    (source,) = find_shards([f"{url}/x.tfrecord"])
    server.faults.extend([fault] * 200)
    with closing(source.open()) as reader, pytest.raises(InputError) as error:
        read(reader, len(CONTENT))
    assert error.value.message.startswith(f"{url}/x.tfrecord: cannot be read at byte 0: ")
    assert says in error.value.message
    assert error.value.exit_code == 3
    assert "\n" not in str(error.value)


def test_ranges_are_asked_for_ahead(server: ObjectServer, folder: str) -> None:
    server.put("/bucket/x", CONTENT)
    (source,) = find_shards([f"{folder}/x"])
    with closing(source.open()) as reader:
        assert isinstance(reader, remote.RemoteReader)
        buffer = memoryview(bytearray(10))
        reader.read_into(0, buffer)
        reader.read_into(RANGE, buffer)
        for ahead in range(remote.IN_FLIGHT):
            if future := reader._ranges.get(ahead):
                future.result()
        assert len({wanted for _, _, wanted in server.seen}) >= remote.IN_FLIGHT


def test_the_next_shard_is_opened_while_one_is_read(server: ObjectServer, folder: str) -> None:
    for name in "ab":
        server.put(f"/bucket/{name}", CONTENT)
    shards = find_shards([f"{folder}/a", f"{folder}/b"])
    server.seen.clear()
    with closing(in_turn(enumerate(shards))) as opened:
        _, _, first = next(opened)
        while not any(path.endswith("/b") and wanted.startswith("bytes=0-15") for _, path, wanted in server.seen):
            time.sleep(0.001)
        assert read(first, len(CONTENT)) == CONTENT
        first.close()
        _, source, second = next(opened)
        assert (source, read(second, len(CONTENT))) == (shards[1], CONTENT)
        second.close()


def test_what_is_wrong_with_the_next_shard_is_said_in_its_turn(server: ObjectServer, folder: str) -> None:
    for name in "abc":
        server.put(f"/bucket/{name}", CONTENT)
    shards = find_shards([f"{folder}/{name}" for name in "abc"])
    server.put("/bucket/b", CONTENT[:50])
    with closing(in_turn(enumerate(shards))) as opened:
        _, _, first = next(opened)
        assert read(first, len(CONTENT)) == CONTENT
        first.close()
        with pytest.raises(InputError, match="b: changed since it was found"):
            next(opened)


def test_a_shard_that_was_opened_ahead_and_is_not_wanted_is_closed(server: ObjectServer, url: str) -> None:
    for name in "ab":
        server.put(f"/{name}", CONTENT)
    shards = find_shards([f"{url}/a", f"{url}/b"])
    with closing(in_turn(enumerate(shards))) as opened:
        next(opened)[2].close()
    for thread in threading.enumerate():
        if thread.name.startswith("remote"):
            thread.join()


def test_memory_is_that_of_the_ranges_in_flight(server: ObjectServer, url: str) -> None:
    server.put("/x", CONTENT * 10)
    (source,) = find_shards([f"{url}/x"])
    with closing(source.open()) as reader:
        assert isinstance(reader, remote.RemoteReader)
        buffer = memoryview(bytearray(1000))
        for at in range(0, len(CONTENT) * 10, 1000):
            reader.read_into(at, buffer)
            assert len(reader._ranges) + len(reader._free) <= 2 * remote.IN_FLIGHT + 4


def test_an_object_replaced_while_it_is_read(server: ObjectServer, folder: str) -> None:
    """Not the ShardError that bytes of two versions would make."""
    server.put("/bucket/x", CONTENT * 3)
    (source,) = find_shards([f"{folder}/x"])
    with closing(source.open()) as reader:
        buffer = memoryview(bytearray(10))
        reader.read_into(0, buffer)
        server.put("/bucket/x", CONTENT[::-1] * 3)
        with pytest.raises(InputError, match="x: changed while it was read"):
            reader.read_into(15 * RANGE, buffer)


@pytest.mark.parametrize("status", [401, 403])
def test_credentials_that_expire(server: ObjectServer, folder: str, status: int) -> None:
    server.put("/bucket/x", CONTENT * 3)
    (source,) = find_shards([f"{folder}/x"])
    with closing(source.open()) as reader:
        read(reader, RANGE)
        server.status = status
        with pytest.raises(InputError, match=r"x: cannot be looked at: .*; check the credentials"):
            read(reader, 3 * len(CONTENT))


def test_a_password_is_used_and_not_shown(server: ObjectServer, url: str) -> None:
    server.put("/x.tfrecord", CONTENT)
    address = url.replace("://", "://me:hidden@") + "/x.tfrecord?X-Amz-Signature=hidden&a=b"
    (source,) = find_shards([address])
    assert "hidden" not in source.address + source.canonical + repr(source)
    again = pickle.loads(pickle.dumps(source))
    with closing(again.open()) as reader:
        assert read(reader, len(CONTENT)) == CONTENT
    assert server.authorizations == {"Basic bWU6aGlkZGVu"}
    assert all(path == "/x.tfrecord?X-Amz-Signature=hidden&a=b" for _, path, _ in server.seen)
    server.status = 403
    with pytest.raises(InputError) as error:
        find_shards([address])
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("s3://bucket/key.tfrecord", "s3://bucket/key.tfrecord"),
        ("sftp://me:word@host:22/a/b", "sftp://me:***@host:22/a/b"),
        ("sftp://me@host/a", "sftp://me@host/a"),
        ("https://host/a?page=2", "https://host/a?page=2"),
        ("https://host/a?page=2&sig=abc", "https://host/a"),
        ("https://host/a?X-Amz-Credential=a&X-Amz-Signature=b", "https://host/a"),
        ("abfss://container@account.dfs.core.windows.net/a", "abfss://container@account.dfs.core.windows.net/a"),
        ("zip://a.tfrecord::ftp://u:p@host/b.zip", "zip://a.tfrecord::ftp://u:***@host/b.zip"),
        ("https://u:p@[broken/a", "https://..."),
        ("shards/a:b@c.tfrecord", "shards/a:b@c.tfrecord"),
    ],
)
def test_what_is_shown_of_an_address(address: str, shown: str) -> None:
    assert redacted(address) == shown


def test_a_path_is_no_address() -> None:
    assert not is_address("a/b://c")
    assert not is_address("C:/b")
    assert is_address("S3://b")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a/*.tfrecord", ["a/x.tfrecord", "a/y.tfrecord"]),
        ("a/**/*.tfrecord", ["a/b/z.tfrecord", "a/x.tfrecord", "a/y.tfrecord"]),
        ("**", ["a/b/z.tfrecord", "a/x.tfrecord", "a/y.csv", "a/y.tfrecord"]),
        ("a/[!x].tfrecord", ["a/y.tfrecord"]),
        ("a/[x-y].*", ["a/x.tfrecord", "a/y.csv", "a/y.tfrecord"]),
        ("?/x.tfrecord", ["a/x.tfrecord"]),
        ("a.*", []),
    ],
)
def test_patterns(pattern: str, names: list[str]) -> None:
    keys = ["a/b/z.tfrecord", "a/x.tfrecord", "a/y.csv", "a/y.tfrecord"]
    assert [key for key in keys if glob_pattern(pattern).fullmatch(key)] == names


def test_what_cannot_be_found(server: ObjectServer, url: str) -> None:
    for name, says in (
        ("absent", "no such file"),
        ("folder/", "a web server does not list its files"),
    ):
        with pytest.raises(InputError, match=says):
            find_shards([f"{url}/{name}"])
    with pytest.raises(InputError, match="nosuch"):
        find_shards(["nosuch://x/y"])


@pytest.mark.parametrize(
    ("address", "settings", "says"),
    [
        ("s4://b/x", {}, "Protocol not known: s4; check the address"),
        ("htps://b/x", {}, "Protocol not known: htps; check the address"),
        (
            "s3://b/x",
            {"AWS_ENDPOINT_URL": "localhost:9000"},
            "AWS_ENDPOINT_URL is 'localhost:9000', no address of a server",
        ),
        (
            "s3://b/x",
            s3.environment("http://127.0.0.1:9"),
            "sending request; check the address and the connection",
        ),
        ("az://b/x", {}, "Account must be specified; set the environment's variables for it"),
        ("hdfs://b/x", {}, "install what reads it"),
    ],
)
def test_what_cannot_be_reached_is_one_line(
    monkeypatch: pytest.MonkeyPatch, address: str, settings: dict[str, str], says: str
) -> None:
    pytest.importorskip("obstore", reason="obstore is not installed")
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error:
        find_shards([address])
    assert str(error.value).startswith(f"{address}: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_refusal_is_said_in_a_few_words(server: ObjectServer, folder: str) -> None:
    server.status = 403
    with pytest.raises(InputError, match=r"/x: [a-zA-Z :]*HTTP status 403 Forbidden; check the credentials$") as error:
        find_shards([f"{folder}/x"])
    assert "not-shown" not in str(error.value)


def test_an_absent_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.delitem(sys.modules, "scorer.inputs.object_store", raising=False)
    with pytest.raises(InputError, match=r"s3://b/x: obstore is not installed; pip install '.*\[remote\]'"):
        find_shards(["s3://b/x"])


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["as they are", "compressed"])
def test_a_job_over_remote_shards_gives_the_bytes_of_a_local_one(
    server: ObjectServer, folder: str, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    paths = write_shards(tmp_path / "shards", [300, 5, 40])
    addresses = put(server, folder, paths, pack)
    do_as_found(Job(find_shards(paths), str(tmp_path / "local.csv")))
    server.faults.extend(["", "cut", "503", ""] * 3)
    do_as_found(Job(find_shards(addresses), str(tmp_path / "remote.csv")))
    assert (tmp_path / "remote.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()


def put(server: ObjectServer, folder: str, paths: Sequence[str], pack: Callable[[bytes], bytes] = bytes) -> list[str]:
    """The addresses of objects with what is in the files `paths`."""
    names = [Path(path).name for path in paths]
    for name, path in zip(names, paths, strict=True):
        server.put(f"/bucket/{name}", pack(Path(path).read_bytes()))
    return [f"{folder}/{name}" for name in names]


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["as they are", "compressed"])
def test_a_job_whose_credentials_expire_is_resumed(
    server: ObjectServer, folder: str, tmp_path: Path, pack: Callable[[bytes], bytes]
) -> None:
    paths = write_shards(tmp_path / "shards", [40] * 20)
    addresses = put(server, folder, paths, pack)
    do_as_found(Job(find_shards(paths), str(tmp_path / "local.csv")))

    def expire(path: str) -> None:
        server.status = 403 if path.endswith("j.tfrecord") else server.status

    server.watch, found = expire, find_shards(addresses)
    job = Job(found, str(tmp_path / "remote.csv"))
    with pytest.raises(InputError, match=r"videos are kept\)") as error:
        do_as_found(job)
    assert (error.value.exit_code, error.value.remedy) == (3, "check the credentials")
    server.status, server.watch = 0, lambda path: None
    do_as_found(Job(find_shards(addresses), job.output, resume_policy="resume"))
    assert Path(job.output).read_bytes() == (tmp_path / "local.csv").read_bytes()


def test_a_shard_replaced_while_a_job_runs(server: ObjectServer, folder: str, tmp_path: Path) -> None:
    """It stops there; resumed, it scores what is there by then."""
    paths = write_shards(tmp_path / "shards", [40] * 20)
    (other,) = write_shards(tmp_path / "other", [50], seed=1)
    addresses = put(server, folder, paths)

    def replace(path: str) -> None:
        if path.endswith("j.tfrecord"):
            server.watch = lambda path: None
            server.put(f"/bucket/{Path(paths[-1]).name}", Path(other).read_bytes())

    server.watch, found = replace, find_shards(addresses)
    job = Job(found, str(tmp_path / "remote.csv"))
    with pytest.raises(InputError, match=r"changed since it was found.*; run again once nothing writes to it") as error:
        do_as_found(job)
    assert error.value.exit_code == 3
    do_as_found(Job(find_shards(addresses), job.output, resume_policy="resume"))
    do_as_found(Job(find_shards([*paths[:-1], other]), str(tmp_path / "local.csv")))
    assert Path(job.output).read_bytes() == (tmp_path / "local.csv").read_bytes()


def test_a_server_that_falls_silent(server: ObjectServer, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_store, "_SECONDS", 1)
    server.put("/x", CONTENT[:RANGE])
    server.faults.append("silent")
    assert read_all(f"{url}/x") == CONTENT[:RANGE]
