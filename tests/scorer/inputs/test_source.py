"""What every source must do, run over local files, a toy, a web server, object stores, and what fsspec reads.

A new source is one more case in `SOURCES`: how to make one of some bytes, change it and take it away. What is read from
an open one is read of each as it is and compressed in each way of `PACKED`.
"""

from __future__ import annotations

import gzip
import os
import pickle
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from scorer.errors import InputError, UsageError
from scorer.inputs.compressed import DecompressingReader, is_compressed
from scorer.inputs.discover import find_shards
from scorer.inputs.folders import SUFFIXES
from scorer.inputs.remote import RemoteReader
from scorer.inputs.source import Reader, Source
from tests.scorer.inputs import toy_source
from tests.stores import s3
from tests.stores.object_server import ObjectServer

CONTENT = bytes(range(251)) * 9


class LocalCase:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def address(self, name: str) -> str:
        return str(self._folder / name)

    def write(self, name: str, content: bytes) -> None:
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        version = path.stat().st_mtime_ns + 1 if path.exists() else 0
        path.write_bytes(content)
        os.utime(path, ns=(0, version))

    def remove(self, name: str) -> None:
        (self._folder / name).unlink()


class ToyCase:
    def __init__(self, folder: Path) -> None:
        toy_source.CONTENT.clear()

    def address(self, name: str) -> str:
        return f"toy://{name}"

    def write(self, name: str, content: bytes) -> None:
        version = toy_source.CONTENT.get(name, (0, b""))[0] + 1
        toy_source.CONTENT[name] = version, content

    def remove(self, name: str) -> None:
        del toy_source.CONTENT[name]


class Case(Protocol):
    def address(self, name: str) -> str: ...

    def write(self, name: str, content: bytes) -> None: ...

    def remove(self, name: str) -> None: ...


class S3Case:
    """Objects in Amazon's protocol, or Google's."""

    def __init__(self, folder: Path, url: str, scheme: str) -> None:
        self._client, self._folder = s3.client(url), folder.name
        self._root = f"{scheme}://{s3.BUCKET}/{folder.name}"

    def address(self, name: str) -> str:
        return f"{self._root}/{name}"

    def write(self, name: str, content: bytes) -> None:
        self._client.put_object(Bucket=s3.BUCKET, Key=f"{self._folder}/{name}", Body=content)

    def remove(self, name: str) -> None:
        self._client.delete_object(Bucket=s3.BUCKET, Key=f"{self._folder}/{name}")


class HttpCase:
    """Files of a web server."""

    def __init__(self, server: ObjectServer, url: str) -> None:
        self._server, self._url = server, url

    def address(self, name: str) -> str:
        return f"{self._url}/{name}"

    def write(self, name: str, content: bytes) -> None:
        self._server.put(f"/{name}", content)

    def remove(self, name: str) -> None:
        del self._server.objects[f"/{name}"]


class FsspecCase:
    """What fsspec reads, here from memory."""

    def __init__(self, folder: Path) -> None:
        from fsspec.implementations.memory import MemoryFileSystem

        self._files, self._folder = MemoryFileSystem(), folder.name

    def address(self, name: str) -> str:
        return f"memory://{self._folder}/{name}"

    def write(self, name: str, content: bytes) -> None:
        self._files.pipe_file(f"/{self._folder}/{name}", content)

    def remove(self, name: str) -> None:
        self._files.rm_file(f"/{self._folder}/{name}")


LISTING = ("local file", "toy", "s3", "gs", "fsspec")
SOURCES = (*LISTING, "http")
HALF = len(CONTENT) // 2
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "as it is": bytes,
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "several members": lambda content: (
        gzip.compress(content[:HALF]) + gzip.compress(b"") + zlib.compress(content[HALF:])
    ),
}


def case_of(kind: str, folder: Path, request: pytest.FixtureRequest) -> Case:
    if kind == "local file":
        return LocalCase(folder)
    if kind == "toy":
        return ToyCase(folder)
    if kind == "fsspec":
        pytest.importorskip("fsspec", reason="fsspec is not installed")
        return FsspecCase(folder)
    if kind == "http":
        request.getfixturevalue("monkeypatch").setenv("NO_PROXY", "*")
        return HttpCase(*request.getfixturevalue("web_server"))
    return S3Case(folder, request.getfixturevalue(f"{kind}_server"), kind)


@pytest.fixture(scope="module")
def web_server() -> Iterator[tuple[ObjectServer, str]]:
    server = ObjectServer()
    with server.running() as url:
        yield server, url


@pytest.fixture(params=SOURCES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return case_of(request.param, tmp_path, request)


@pytest.fixture(params=LISTING)
def listing(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    """A case with folders."""
    made = case_of(request.param, tmp_path, request)
    made.write("folder/x.tfrecord", CONTENT)
    return made


@pytest.fixture
def source(case: Case) -> Source:
    case.write("folder/x.tfrecord", CONTENT)
    (found,) = find_shards([case.address("folder/x.tfrecord")])
    return found


@pytest.fixture(params=PACKED)
def packed(request: pytest.FixtureRequest, case: Case) -> Source:
    """A source of CONTENT, compressed or not."""
    case.write("folder/x.tfrecord", PACKED[request.param](CONTENT))
    (found,) = find_shards([case.address("folder/x.tfrecord")])
    return found


@pytest.fixture
def reader(packed: Source) -> Iterator[Reader]:
    """Of what was compressed."""
    with closing(opened(packed)) as reader:
        yield reader


def opened(source: Source) -> Reader:
    """As a record reader has it."""
    reader, head = source.open(), bytearray(64)
    compressed = is_compressed(bytes(head[: reader.read_into(0, memoryview(head))]))
    return DecompressingReader(source, reader) if compressed else reader


def read(reader: Reader, offset: int, count: int) -> bytes:
    buffer = bytearray(b"\xee" * (count + 1))
    done = reader.read_into(offset, memoryview(buffer)[:count])
    assert buffer[done:] == b"\xee" * (count + 1 - done), "written past what was read"
    return bytes(buffer[:done])


def test_what_is_found(case: Case, source: Source) -> None:
    assert source.address == case.address("folder/x.tfrecord")
    assert source.stat.size == len(CONTENT)
    (again,) = find_shards([source.canonical])
    assert (again.identity, again.stat) == (source.identity, source.stat)


@pytest.mark.parametrize(("offset", "count"), [(0, 10), (700, 300), (0, len(CONTENT)), (5, 1), (5, 0)])
def test_bytes_from_any_position_in_any_order(reader: Reader, offset: int, count: int) -> None:
    for start in (offset, 0, offset):
        assert read(reader, start, count) == CONTENT[start : start + count]
    reader.check_unchanged()


@pytest.mark.parametrize("left", [0, 1, 100])
def test_the_end_is_the_only_short_read(reader: Reader, left: int) -> None:
    assert read(reader, len(CONTENT) - left, 200) == CONTENT[len(CONTENT) - left :]


def test_a_position_past_the_end_is_an_error(packed: Source, reader: Reader) -> None:
    with pytest.raises(InputError) as error:
        read(reader, len(CONTENT) + 1, 10)
    size = f"{len(CONTENT)} bytes decompressed" if isinstance(reader, DecompressingReader) else f"{len(CONTENT)} bytes"
    expected = f"{packed.address}: has {size}, but byte {len(CONTENT) + 1} was to come next"
    assert error.value.message.startswith(expected)


def test_an_empty_source(case: Case) -> None:
    case.write("folder/empty.tfrecord", b"")
    (empty,) = find_shards([case.address("folder/empty.tfrecord")])
    assert empty.stat.size == 0
    with closing(empty.open()) as opened:
        assert read(opened, 0, 10) == b""


def test_two_readers_do_not_disturb_each_other(packed: Source) -> None:
    first, second = opened(packed), opened(packed)
    assert read(first, 10, 5) == CONTENT[10:15]
    assert read(second, 500, 5) == CONTENT[500:505]
    first.close()
    assert read(second, 20, 5) == CONTENT[20:25]
    second.close()


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", CONTENT[::-1], b""])
def test_a_change_before_it_is_opened(case: Case, source: Source, content: bytes) -> None:
    case.write("folder/x.tfrecord", content)
    with pytest.raises(InputError, match=r"x\.tfrecord: changed since it was found"):
        source.open()


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", CONTENT[::-1], b""])
def test_a_change_while_it_is_read(case: Case, packed: Source, reader: Reader, content: bytes) -> None:
    case.write("folder/x.tfrecord", content)
    sizes = rf"{packed.stat.size} bytes then, {len(content)} now"
    with pytest.raises(InputError, match=rf"changed while it was read \({sizes}"):
        reader.check_unchanged()


def test_a_source_cut_short_while_it_is_read(case: Case, reader: Reader) -> None:
    """Bytes that were there when it was found are never silently missing; those read ahead are there."""
    case.write("folder/x.tfrecord", CONTENT[:100])
    ahead = isinstance(reader, (RemoteReader, DecompressingReader))
    if ahead:
        with suppress(InputError):
            assert read(reader, 50, 100) == CONTENT[50:150]
    look: Callable[[], object] = reader.check_unchanged if ahead else partial(read, reader, 50, 100)
    with pytest.raises(InputError, match=r"x\.tfrecord: changed while it was read"):
        look()


def test_a_source_that_is_gone(case: Case, packed: Source, reader: Reader) -> None:
    case.remove("folder/x.tfrecord")
    with pytest.raises(InputError, match=r"x\.tfrecord: is gone"):
        reader.check_unchanged()
    with pytest.raises(InputError, match=r"x\.tfrecord: cannot be opened"):
        packed.open()


def test_an_absent_source(case: Case) -> None:
    with pytest.raises(InputError, match=r"y\.tfrecord: no such file"):
        find_shards([case.address("folder/y.tfrecord")])


def test_a_folder_is_the_shards_in_it_by_name(listing: Case) -> None:
    for name in ("folder/b.tfrecord", "folder/a.tfrecord", "folder/c.csv"):
        listing.write(name, CONTENT)
    found = find_shards([listing.address("folder")])
    assert [source.address for source in found] == [listing.address(f"folder/{name}.tfrecord") for name in "abx"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_of_each_kind(listing: Case, suffix: str) -> None:
    for name in (f"f/b{suffix}", f"f/a{suffix}", f"f/.hidden{suffix}", "f/c.csv", "f/d.gz"):
        listing.write(name, CONTENT)
    assert [source.address for source in find_shards([listing.address("f")])] == [
        listing.address(f"f/{name}{suffix}") for name in "ab"
    ]


def test_a_folder_of_several_kinds_is_refused(listing: Case) -> None:
    """One may be made of the other: they would be scored twice."""
    listing.write("folder/x.tfrecord.gz", CONTENT)
    with pytest.raises(InputError) as error:
        find_shards([listing.address("folder")])
    found = ".tfrecord files (x.tfrecord) and .tfrecord.gz files (x.tfrecord.gz)"
    folder = listing.address("folder")
    assert str(error.value) == (
        f"{folder}: there are {found} in it; name those you mean with a pattern: '{folder}/*.tfrecord'"
    )
    assert len(find_shards([f"{folder}/x.tfrecord"])) == 1


@pytest.mark.parametrize("listing", [name for name in LISTING if name != "toy"], indirect=True)  # a toy is no output
def test_the_output_is_no_shard_of_its_folder(listing: Case) -> None:
    """A job that is resumed may have it there already."""
    listing.write("folder/preds.parquet", CONTENT)
    (found,) = find_shards([listing.address("folder")], listing.address("folder/preds.parquet"))
    assert found.address == listing.address("folder/x.tfrecord")


def test_a_folder_without_shards(listing: Case) -> None:
    listing.write("f/c.csv", CONTENT)
    with pytest.raises(
        InputError, match=r"/f: no shard in it \(\.tfrecord, \.tfrecord\.gz, \.parquet, \.arrow, \.feather\)"
    ):
        find_shards([listing.address("f")])


def test_one_source_twice(case: Case, source: Source) -> None:
    with pytest.raises(UsageError, match="are the same shard"):
        find_shards([source.address, source.canonical])


def test_a_source_can_be_sent_to_another_process(source: Source) -> None:
    again: Source = pickle.loads(pickle.dumps(source))
    assert (again.address, again.stat, again.identity) == (source.address, source.stat, source.identity)
    with closing(again.open()) as opened:
        assert read(opened, 0, 10) == CONTENT[:10]


def test_a_local_pipe_or_nul_in_a_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        find_shards([str(tmp_path / "pipe")])
    with pytest.raises(InputError, match="null"):
        find_shards(["a\0b"])


def test_a_local_file_that_may_not_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = LocalCase(tmp_path)
    case.write("x.tfrecord", CONTENT)
    (source,) = find_shards([case.address("x.tfrecord")])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(InputError, match=r"x\.tfrecord: cannot be opened: Permission denied"):
        source.open()
