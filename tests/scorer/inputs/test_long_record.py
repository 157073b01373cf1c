"""Records longer than a block: what is asked for is read, whatever lies beside it, in flat memory."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.inputs import long_record, tfrecord
from scorer.inputs.batching import Batch, batches
from scorer.inputs.long_record import shortened
from scorer.inputs.protobuf import InvalidExample, message_type, parse
from scorer.inputs.records import BLOCK_BYTES, Schema
from tests import shards
from tests.scorer.inputs.test_batching import SCHEMA, payload, rows, video
from tests.scorer.inputs.test_file_kinds import frame_level
from tests.shards import bytes_feature, entry, example_of, field, float_feature, int64_feature

PICTURE = entry("image", bytes_feature(bytes(3 << 20)))
NAMES = (b"rgb", b"audio", b"id", b"video_id", b"labels")


def beside(number: int, *more: bytes) -> bytes:
    """Video `number` with other features in front of its own."""
    return example_of(more) + payload(number)


def read_all(path: Path) -> list[Batch]:
    return list(batches(shards.sources([str(path)]), SCHEMA, 9, on_error="skip"))


def test_a_picture_in_a_record_does_not_matter(tmp_path: Path) -> None:
    records = [payload(0), beside(1, PICTURE), payload(2) + example_of([PICTURE]), payload(3)]
    shards.write_shard(tmp_path / "x", records)
    (batch,) = read_all(tmp_path / "x")
    assert rows(batch) == [video(number) for number in range(4)]
    assert not batch.quarantined
    assert batch.finished == [(0, 4)]


MISTAKES: dict[str, Callable[[], bytes]] = {
    "feature 'rgb' is missing; the record has 'audio', 'id', 'image', 'labels'": lambda: (
        example_of([PICTURE]) + shards.example("a", [1], {"audio": [1]})
    ),
    "feature 'rgb' holds 2 values, the model wants 3": lambda: (
        example_of([PICTURE]) + shards.example("a", [1], {"audio": [1], "rgb": [1, 2]})
    ),
    f"the features asked for have more than {BLOCK_BYTES:,} bytes": lambda: example_of(
        [entry("labels", int64_feature([1] * (3 << 20)))]
    ),
    "not a tf.Example (a number without an end)": lambda: b"\xff" * (3 << 20),
    "not a tf.Example (a field past its end)": lambda: b"\x0a\xff\xff\xff\x7f" + bytes(3 << 20),
    "not a tf.Example (wire type 3)": lambda: b"\x0b" + bytes(3 << 20),
    "a record longer than a block with more than 100,000 fields": lambda: b"\x0a\x00" * (2 << 20),
    "a frame-level record (a SequenceExample of 'audio', 'rgb'), not a video-level tf.Example": lambda: frame_level(
        "a", 250_000
    ),
}


@pytest.mark.parametrize("says", MISTAKES)
def test_what_is_wrong_is_said_of_that_record_alone(tmp_path: Path, says: str) -> None:
    path = shards.write_shard(tmp_path / "x", [payload(0), MISTAKES[says](), payload(2)])
    (batch,) = read_all(tmp_path / "x")
    assert rows(batch) == [video(0), video(2)]
    (bad,) = batch.quarantined
    assert (bad.record, bad.offset, bad.bytes_lost, bad.reason) == (1, shards.starts(path)[1], 0, says)


def test_its_crc_is_checked(tmp_path: Path) -> None:
    path = shards.write_shard(tmp_path / "x", [payload(0), beside(1, PICTURE), payload(2)])
    shards.flip_bit(path, shards.starts(path)[1] + (1 << 20))
    (batch,) = read_all(tmp_path / "x")
    assert [bad.reason for bad in batch.quarantined] == ["the payload fails its CRC32C"]


@given(st.permutations(range(7)), st.integers(1, 40), st.booleans())
@settings(max_examples=50)
def test_it_is_what_protobuf_reads_in_the_whole(order: list[int], window: int, key_last: bool) -> None:
    features = {"rgb": float_feature([1, 2, 3]), "audio": float_feature([4])}
    entries = [entry(name, value) for name, value in features.items()]
    entries += [entry("id", bytes_feature(b"abc")), entry("labels", int64_feature([5, 300]))]
    entries += [entry("image", bytes_feature(bytes(500))), entry("rgb", float_feature([7, 8, 9]))]
    backwards = field(1, field(2, features["audio"]) + field(1, b"audio"))
    entries += [backwards if key_last else entry("more", int64_feature(range(90)))]
    record = example_of([entries[i] for i in order[:4]]) + b"\x2a\x00" + example_of([entries[i] for i in order[4:]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_record, "_WINDOW", window)
        short = shortened(lambda at, count: record[at : at + count], 0, len(record), NAMES, 1000)
    expected, found = parse(record, {"rgb": 3, "audio": 1}), parse(short, {"rgb": 3, "audio": 1})
    assert [values.tolist() for values in found.floats] == [values.tolist() for values in expected.floats]
    assert (found.id, found.labels) == (expected.id, expected.labels)
    assert message_type("Example").FromString(short).features.feature["image"].WhichOneof("kind") is None


@given(st.binary(max_size=200))
def test_any_bytes_are_an_example_or_invalid(record: bytes) -> None:
    with suppress(InvalidExample):
        shortened(lambda at, count: record[at : at + count], 0, len(record), NAMES, 50)


def test_records_a_little_longer_than_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All records are long ones for a small block."""
    monkeypatch.setattr(tfrecord, "BLOCK_BYTES", 60)
    path = shards.write_shard(tmp_path / "x", map(payload, range(9)))
    (batch,) = batches(shards.sources([path]), Schema({"rgb": 3, "audio": 1}), 20)
    assert rows(batch) == [video(number) for number in range(9)]
