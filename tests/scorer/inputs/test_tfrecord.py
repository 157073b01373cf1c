"""Framing: records and both CRCs, and every way in which a file can be something else."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st

from scorer.errors import InputError, ShardError
from scorer.inputs import tfrecord
from scorer.inputs.source import LocalFile
from scorer.inputs.tfrecord import Shard
from scorer.kernels import loops
from tests import shards

PAYLOADS = [b"first", b"", b"third" * 100]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return shards.write_shard(tmp_path / "x.tfrecord", PAYLOADS)


def read(path: str, offset: int = 0, record: int = 0) -> tuple[list[bytes | str], str]:
    """Payloads, or the reason for each bad one, and the reason why the rest is lost or ''."""
    found: list[bytes | str] = []
    with Shard(LocalFile.at(path)) as shard:
        for frames in shard.blocks(offset, record):
            bad = {row: error.reason for row, error in frames.bad.items()}
            found += [bad.get(row) or frames.payload(row) for row in range(len(frames))]
    return found, frames.lost.reason if frames.lost else ""


def test_crc32c_is_castagnoli() -> None:
    """Test vectors of RFC 3720, B.4."""
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def test_masked_crc_is_tensorflows() -> None:
    """The mask of tensorflow/core/lib/hash/crc32c.h: rotate right by 15, add a constant."""
    header = bytes.fromhex("0500000000000000eab2043e")  # of the record b"12345" as TensorFlow writes it
    assert shards.frame(b"12345")[:12] == header
    assert tfrecord._SIZES[header] == 12 + 5 + 4


def test_reads_whole_records(path: str) -> None:
    assert read(path) == (PAYLOADS, "")


def test_resumes_at_any_record(path: str) -> None:
    for record, offset in enumerate(shards.starts(path)):
        assert read(path, offset, record) == (PAYLOADS[record:], "")


def test_place_is_index_and_byte(path: str) -> None:
    with Shard(LocalFile.at(path)) as shard:
        (frames,) = shard.blocks(0, 5)
    assert [frames.location(row) for row in range(4)] == [(5 + i, at) for i, at in enumerate(shards.starts(path))]


@given(st.lists(st.binary(max_size=200), min_size=1), st.integers(216, 700))
def test_block_borders_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes], size: int
) -> None:
    path = shards.write_shard(tmp_path_factory.getbasetemp() / "borders", payloads)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrecord, "BLOCK_BYTES", size)
        patch.setattr(tfrecord, "MAX_BLOCK_RECORDS", 3)
        assert read(path) == (payloads, "")


def test_bad_payload_loses_one_record(path: str) -> None:
    shards.damage_payload(path, 0)
    assert read(path) == (["the payload fails its CRC32C", *PAYLOADS[1:]], "")


def test_bad_payload_error_names_the_place(path: str) -> None:
    shards.damage_payload(path, 2)
    with Shard(LocalFile.at(path)) as shard:
        (frames,) = shard.blocks()
    assert isinstance(frames.bad[2], ShardError)
    assert str(frames.bad[2]).startswith(f"{path}: record 2 at byte 37: the payload fails its CRC32C; ")


def test_bad_length_loses_the_rest(path: str) -> None:
    shards.damage_length(path, 1)
    assert read(path) == (PAYLOADS[:1], "the length fails its CRC32C, and with it all that follows is lost")


def test_every_truncation_is_noticed(path: str) -> None:
    *starts, size = shards.starts(path)
    for cut in set(range(1, size)) - set(starts):
        shards.truncate(shards.write_shard(path, PAYLOADS), cut)
        payloads, lost = read(path)
        assert (
            payloads
            == PAYLOADS[: sum(start + 12 + len(p) + 4 <= cut for start, p in zip(starts, PAYLOADS, strict=True))]
        )
        assert lost.startswith("truncated: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "truncated: 5 of a header's 12 bytes"),
        (bytes(range(200, 240)), "not a TFRecord file, or its first length is damaged (CRC32C)"),
    ],
)
def test_other_files_are_named(path: str, content: bytes, reason: str) -> None:
    Path(path).write_bytes(content)
    assert read(path) == ([], reason)


@pytest.mark.parametrize("length", [1000, 1 << 31, 1 << 63, (1 << 64) - 1])
def test_length_past_the_end_is_truncation(path: str, length: int) -> None:
    head = struct.pack("<Q", length)
    Path(path).write_bytes(shards.frame(b"a") + head + struct.pack("<I", shards.masked_crc(head)) + b"12345")
    assert read(path) == ([b"a"], f"truncated: a record of {length} bytes, of which the file holds 5")


def test_record_longer_than_a_block_is_checked_and_left_where_it_is(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord, "BLOCK_BYTES", 300)
    payloads = [b"a", b"b" * 1001, b"c", b"d" * 285, b"e" * 284]
    shards.write_shard(path, payloads)
    found = []
    with Shard(LocalFile.at(path)) as shard:
        for frames in shard.blocks():
            assert not frames.bad
            if frames.long:
                assert len(frames) == 1
                start, stop = frames.long
                found.append(shard.read(start, stop - start))
            else:
                found += [frames.payload(row) for row in range(len(frames))]
    assert found == payloads


def test_long_record_with_a_bad_crc_is_a_shard_error(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfrecord, "BLOCK_BYTES", 300)
    shards.write_shard(path, [b"b" * 1001])
    shards.flip_bit(path, 900)
    assert read(path) == (["the payload fails its CRC32C"], "")


def test_record_as_long_as_a_block_is_read(path: str) -> None:
    payloads = [b"a", bytes(tfrecord.BLOCK_BYTES - 16), b"b"]
    assert read(shards.write_shard(path, payloads)) == (payloads, "")


def test_shrinking_file_is_an_input_error(path: str) -> None:
    with Shard(LocalFile.at(path)) as shard:
        shards.truncate(path, 20)
        with pytest.raises(InputError, match=f"changed while it was read.*{shard.size} bytes then, 20 now"):
            list(shard.blocks())


def test_growing_file_is_noticed(path: str) -> None:
    with Shard(LocalFile.at(path)) as shard:
        with open(path, "ab") as file:
            file.write(shards.frame(b"late"))
        assert sum(map(len, shard.blocks())) == len(PAYLOADS)
        with pytest.raises(InputError, match="changed while it was read"):
            shard.check_unchanged()


def test_resume_past_the_end(path: str) -> None:
    with Shard(LocalFile.at(path)) as shard, pytest.raises(InputError, match="it has changed"):
        next(shard.blocks(offset=10_000))


def test_resume_at_the_end(path: str) -> None:
    with Shard(LocalFile.at(path)) as shard:
        (frames,) = shard.blocks(offset=shard.size, record=3)
    assert (len(frames), frames.last, frames.lost) == (0, True, None)


@pytest.mark.skipif(loops.active.find_header is None, reason="records are looked for by the compiled loops alone")
def test_records_are_found_from_any_byte(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = shards.starts(path)
    for searched in (12, 13, 40, 1 << 13):
        monkeypatch.setattr(tfrecord, "_SEARCHED", searched)
        with Shard(LocalFile.at(path)) as shard:
            for offset in range(shard.size + 2):
                following = next((start for start in starts[:-1] if start >= offset), None)
                assert shard.find_record(offset, shard.size) == following
                assert shard.find_record(offset, offset) is None
                if following is not None:
                    assert shard.find_record(offset, following) is None
                    assert shard.find_record(offset, following + 1) == following
