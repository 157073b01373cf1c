"""Compressed shards give the bytes that were compressed, from any position, and break off where they are damaged."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from scorer.errors import InputError, ShardError
from scorer.inputs import compressed
from scorer.inputs.batching import Batch, batches
from scorer.inputs.compressed import DecompressingReader
from scorer.inputs.records import Schema
from scorer.inputs.source import UNKNOWN_SIZE, LocalFile
from scorer.job.run import score
from scorer.job.spec import Job, Progress
from scorer.system.signals import StopRequest
from tests import shards
from tests.scorer.fakes import FakePredictor, do, write_shards
from tests.scorer.inputs.test_batching import payload

SCHEMA = Schema({"rgb": 3, "audio": 1})
CONTENT = np.random.default_rng(0).integers(0, 20, 3 << 20, np.uint8).tobytes()  # compresses to about two thirds
HALF = len(CONTENT) // 2

PACKED: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "stored": lambda content: gzip.compress(content, 0),
    "two members": lambda content: gzip.compress(content[:HALF]) + gzip.compress(content[HALF:]),
    "two of zlib": lambda content: zlib.compress(content[:HALF]) + zlib.compress(content[HALF:]),
    "padded": lambda content: gzip.compress(content) + bytes(1 << 17),
    "with empty members": lambda content: gzip.compress(b"") + gzip.compress(content) + gzip.compress(b"") * 3,
}


@pytest.fixture(autouse=True, params=["zlib", "zlib_ng"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "zlib":
        monkeypatch.setattr(compressed, "inflate", zlib)
    elif compressed.inflate is zlib:
        pytest.skip("zlib-ng is not installed (extra gzip)")


def open_packed(folder: Path, content: bytes) -> DecompressingReader:
    path = folder / "packed"
    path.write_bytes(content)
    source = LocalFile.at(str(path))
    return DecompressingReader(source, source.open())


@pytest.fixture(params=PACKED)
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DecompressingReader]:
    with closing(open_packed(tmp_path, PACKED[request.param](CONTENT))) as opened:
        yield opened


def read(reader: DecompressingReader, offset: int, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: reader.read_into(offset, memoryview(buffer))])


def test_bytes_from_any_position_in_any_order(reader: DecompressingReader) -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        offset, count = int(random.integers(len(CONTENT))), int(random.integers(1 << 18))
        assert read(reader, offset, count) == CONTENT[offset : offset + count]


def test_the_size_is_known_with_the_last_byte(reader: DecompressingReader) -> None:
    assert reader.size == UNKNOWN_SIZE
    assert read(reader, 0, len(CONTENT) - 1) == CONTENT[:-1]
    assert reader.size == UNKNOWN_SIZE
    assert read(reader, len(CONTENT) - 1, 1) == CONTENT[-1:]
    assert (reader.size, reader.damage) == (len(CONTENT), "")
    assert read(reader, 0, 9) == CONTENT[:9]
    assert read(reader, len(CONTENT), 9) == b""
    with pytest.raises(InputError, match=f"has {len(CONTENT)} bytes decompressed, but byte {len(CONTENT) + 1} was"):
        read(reader, len(CONTENT) + 1, 9)


def test_going_back_does_not_start_again(tmp_path: Path) -> None:
    """Long records are read twice; each may cost its own bytes and a few more, not all those before it."""
    content = bytes(64 << 20)
    reader = open_packed(tmp_path, gzip.compress(content, 1))
    read_bytes = 0
    real = reader._decompressed

    def counting() -> bytes:
        nonlocal read_bytes
        made = real()
        read_bytes += len(made)
        return made

    reader._decompressed = counting  # type: ignore[method-assign]
    for offset in range(0, 60 << 20, 4 << 20):
        for _ in range(3):
            read(reader, offset, 4 << 20)
    assert read_bytes < 6 * len(content)
    reader.close()


def test_memory_stays_flat_whatever_a_file_expands_to(tmp_path: Path) -> None:
    packed = zlib.compressobj(9)
    zeros = bytes(1 << 20)
    content = b"".join(packed.compress(zeros) for _ in range(256)) + packed.flush()
    with closing(open_packed(tmp_path, content)) as reader:
        buffer = memoryview(bytearray(1 << 16))
        tracemalloc.start()
        assert reader.read_into(255 << 20, buffer) == len(buffer)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 4 << 20


def videos(folder: Path, packed: bytes) -> list[Batch]:
    (folder / "shard.tfrecord").write_bytes(packed)
    return list(batches(shards.sources([str(folder / "shard.tfrecord")]), SCHEMA, 7, on_error="skip"))


RECORDS = [shards.frame(payload(number)) for number in range(40)]
SHARD = b"".join(RECORDS)


def test_records_of_a_compressed_shard(tmp_path: Path) -> None:
    found, plain = videos(tmp_path, gzip.compress(SHARD)), videos(tmp_path, SHARD)
    assert [batch.ids for batch in found] == [batch.ids for batch in plain]
    assert [batch.end for batch in found] == [batch.end for batch in plain]
    assert [batch.finished for batch in found] == [batch.finished for batch in plain]


def test_reading_resumes_within_a_compressed_shard(tmp_path: Path) -> None:
    found = videos(tmp_path, gzip.compress(SHARD[:2000]) + gzip.compress(SHARD[2000:]))
    ids = [id for batch in found for id in batch.ids]
    done = 0
    for batch in found[:-1]:
        done += len(batch)
        rest = batches(shards.sources([str(tmp_path / "shard.tfrecord")]), SCHEMA, 7, start=batch.end)
        assert [id for later in rest for id in later.ids] == ids[done:]
    assert batch.end.shard == 0


DAMAGED = {
    "truncated": (gzip.compress(SHARD)[:-200], "the compressed data are truncated"),
    "without its trailer": (gzip.compress(SHARD)[:-8], "the compressed data are truncated"),
    "of another content": (gzip.compress(SHARD)[:-8] + bytes(8), "the compressed data are damaged (incorrect data"),
    "followed by something else": (
        gzip.compress(SHARD) + b"x" * 99,
        "the compressed data are damaged (incorrect header",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_the_rest_of_a_damaged_one_is_lost(tmp_path: Path, name: str) -> None:
    content, reason = DAMAGED[name]
    found = videos(tmp_path, content)
    ids = [id for batch in found for id in batch.ids]
    (bad,) = [bad for batch in found for bad in batch.quarantined]
    assert bad.reason.startswith(reason)
    assert (bad.record, bad.offset) == (len(ids), sum(map(len, RECORDS[: len(ids)])))
    assert 0 <= bad.bytes_lost < len(SHARD)
    assert sum(records for batch in found for _, records in batch.finished) == len(ids) + 1
    if name != "truncated":
        assert len(ids) == len(RECORDS) - (name == "of another content")  # whose checksum comes with the last byte
    with pytest.raises(ShardError) as error:
        list(batches(shards.sources([str(tmp_path / "shard.tfrecord")]), SCHEMA, 7))
    assert reason in str(error.value)


def test_a_damaged_length_within_one(tmp_path: Path) -> None:
    """All of the rest is lost, and how much that is takes reading it."""
    damaged = [*RECORDS[:3], b"\1" + RECORDS[3][1:], *RECORDS[4:]]
    (bad,) = [bad for batch in videos(tmp_path, gzip.compress(b"".join(damaged))) for bad in batch.quarantined]
    assert (bad.record, bad.bytes_lost) == (3, len(SHARD) - bad.offset)


@pytest.mark.parametrize("missing", [1, 14, len(RECORDS[-1]) - 5])
def test_a_truncated_record_within_one(tmp_path: Path, missing: int) -> None:
    (bad,) = [bad for batch in videos(tmp_path, gzip.compress(SHARD[:-missing])) for bad in batch.quarantined]
    assert bad.reason.startswith("truncated: ")
    assert (bad.record, bad.bytes_lost) == (39, len(RECORDS[-1]) - missing)


def test_records_longer_than_a_block(tmp_path: Path) -> None:
    entries = [
        shards.entry("id", shards.bytes_feature(b"long")),
        shards.entry("picture", shards.bytes_feature(bytes(5 << 20))),
        shards.entry("rgb", shards.float_feature([1, 2, 3])),
        shards.entry("audio", shards.float_feature([4])),
    ]
    long = shards.frame(shards.example_of(entries))
    found = videos(tmp_path, gzip.compress(long + RECORDS[0] + long, 1))
    assert [id for batch in found for id in batch.ids] == [b"long", b"id0", b"long"]
    cut = videos(tmp_path, gzip.compress(long + long[:-9], 1))
    assert next(bad.reason for batch in cut for bad in batch.quarantined).startswith("truncated: a record of")


@pytest.mark.parametrize("length", [0x9C78, 0x088B1F])
def test_a_record_is_no_compressed_file_though_its_length_looks_like_one(tmp_path: Path, length: int) -> None:
    made = shards.entry("rgb", shards.float_feature([1, 2, 3])) + shards.entry("audio", shards.float_feature([4]))
    made += shards.entry("id", shards.bytes_feature(b"v"))
    padding, record = 0, b""
    while len(record) != length:
        padding += length - len(record) - 100 * (not record)
        record = shards.field(1, made + shards.entry("p", shards.bytes_feature(bytes(padding))))
    assert len(record) == length
    (batch,) = videos(tmp_path, shards.frame(record))
    assert batch.ids == [b"v"]


def test_how_much_of_the_file_was_read_is_known(tmp_path: Path) -> None:
    """Positions are those of what it expands to, twenty times as much in its first half."""
    random, records = np.random.default_rng(0), []
    for number in range(400):
        padding = bytes(100_000) if number < 200 else random.bytes(100_000)
        entries = [
            shards.entry("id", shards.bytes_feature(b"v%d" % number)),
            shards.entry("p", shards.bytes_feature(padding)),
            shards.entry("rgb", shards.float_feature([1, 2, 3])),
            shards.entry("audio", shards.float_feature([4])),
        ]
        records.append(shards.frame(shards.example_of(entries)))
    packed = gzip.compress(b"".join(records), 1)
    found = videos(tmp_path, packed)
    read = [batch.consumed or 0 for batch in found[:-1]]
    assert read == sorted(read)
    assert read[20] < len(packed) / 8 < len(packed) / 2 < read[-1] <= len(packed)
    assert found[20].end.offset > sum(map(len, records)) / 4
    assert found[-1].consumed is None, "it is at its end"


def test_progress_is_that_of_the_file(tmp_path: Path) -> None:
    paths = write_shards(tmp_path, [50, 50])
    for path in paths:
        Path(path).write_bytes(gzip.compress(Path(path).read_bytes()))
    sizes, seen = [Path(path).stat().st_size for path in paths], list[Progress]()
    score(Job(shards.sources(paths), str(tmp_path / "preds.csv")), FakePredictor(), StopRequest(), seen.append)
    for progress in seen:
        assert sum(sizes[: progress.shards]) <= progress.bytes <= sum(sizes[: progress.shards + 1])
    assert seen[-1].bytes == sum(sizes)


def test_a_job_over_compressed_shards(tmp_path: Path) -> None:
    plain = write_shards(tmp_path / "plain", [9, 14, 7])
    packed = [str(tmp_path / f"{number}") for number in range(3)]
    for path, to in zip(plain, packed, strict=True):
        Path(to).write_bytes(gzip.compress(Path(path).read_bytes()))
    expected = do(Job(shards.sources(plain), str(tmp_path / "plain.csv"))).record
    record = do(Job(shards.sources(packed), str(tmp_path / "packed.csv"))).record
    assert (tmp_path / "packed.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    assert [shard.records for shard in record.shards] == [shard.records for shard in expected.shards]
    assert record.metrics == expected.metrics
