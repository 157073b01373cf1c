"""Several local shards in one call give what each gives by its own reader, whatever is in them or happens to them."""

from __future__ import annotations

import gzip
import os
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.errors import InputError
from scorer.inputs import batching, plain_files, readers, tfrecord
from scorer.inputs.batching import Batch, batches
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.readers import RecordReaders
from scorer.inputs.records import Level, RecordReader, Schema, Target
from scorer.inputs.source import LocalFile, Source
from scorer.kernels import loops
from scorer.kernels.limits import MAX_FILES
from scorer.kernels.packed import RowSizes
from tests import shards
from tests.loops import needs_both, shard_by_shard
from tests.scorer.inputs import toy_format
from tests.scorer.inputs.test_batching import SCHEMA, kinds_of_payload, payload, rows, write

pytestmark = needs_both

FRAMES = {"rgb": np.full((4, 3), 7, np.uint8), "audio": np.full((4, 1), 9, np.uint8)}
MEANS = [shards.entry("rgb", shards.float_feature([1, 2, 3])), shards.entry("audio", shards.float_feature([4]))]
FRAMES_ALONE = shards.sequence_example("f", [1], FRAMES)
FRAMES_AND_MEANS = shards.sequence_example("b", [2], FRAMES, MEANS)
NO_FRAMES = payload(3) + b"\x12\x00"  # as YouTube-8M's are: a list of frames' lists without one

KINDS = {**kinds_of_payload(0), "frames": FRAMES_ALONE, "both": FRAMES_AND_MEANS, "tail": NO_FRAMES}


def read(found: Sequence[Source], size: int, start: Position = BEGINNING, level: Level = "auto") -> list[Any]:
    """All of each batch."""
    return [
        (rows(batch), batch.labelled, batch.start, batch.end, batch.quarantined, batch.finished, batch.unread_frames)
        for batch in batches(found, Schema(SCHEMA.inputs, level), size, start=start, on_error="skip")
    ]


def made(number: int, kind: str) -> bytes:
    return kinds_of_payload(number).get(kind, KINDS[kind])


@given(
    kinds=st.lists(st.lists(st.sampled_from([*KINDS, *["plain", "tail"] * 8]), max_size=20), max_size=6),
    damage=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["flip", "cut"]), st.integers(0, 9999)), max_size=2),
    packed=st.lists(st.integers(0, 5), max_size=1),
    size=st.integers(1, 30),
    block=st.integers(200, 4000),
    level=st.sampled_from(["auto", "video"]),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_what_each_gives_by_its_own_reader(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[list[str]],
    damage: list[tuple[int, str, int]],
    packed: list[int],
    size: int,
    block: int,
    level: Level,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    paths = shards.write_damaged(folder, kinds, made, damage)
    for index in packed:
        if index < len(paths):
            Path(paths[index]).write_bytes(gzip.compress(Path(paths[index]).read_bytes()))
    found = shards.sources(paths)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrecord, "BLOCK_BYTES", block)
        patch.setattr(plain_files, "ROOM", block)
        with shard_by_shard():
            expected = read(found, size, level=level)
        given = read(found, size, level=level)
        assert given == expected
        if given:
            number = data.draw(st.integers(0, len(given) - 1))
            assert read(found, size, given[number][3], level) == expected[number + 1 :]


def test_shards_are_not_opened_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(tmp_path, [5] * (MAX_FILES + 3))
    monkeypatch.delattr(LocalFile, "open")
    assert sum(len(batch) for batch in batches(shards.sources(paths), SCHEMA, 4096)) == 5 * len(paths)
    found = [len(batch) for batch in batches(shards.sources(paths), SCHEMA, 12)]
    assert found == [12] * (5 * len(paths) // 12) + [5 * len(paths) % 12]


def test_only_what_is_not_plain_is_read_by_its_own_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(tmp_path, [5] * 6)
    shards.write_shard(paths[2], [payload(0), FRAMES_ALONE, payload(1)])
    shards.write_shard(paths[4], [FRAMES_AND_MEANS, payload(1)])
    opened, real = list[str](), RecordReaders.open

    def noted(self: RecordReaders, source: Source) -> RecordReader:
        opened.append(source.address)
        return real(self, source)

    monkeypatch.setattr(RecordReaders, "open", noted)
    (batch,) = batches(shards.sources(paths), SCHEMA, 100, on_error="skip")
    assert opened == [paths[2], paths[4]]
    assert (len(batch), len(batch.quarantined)) == (4 * 5 + 2 + 2, 1)


def test_frames_beside_means_are_noted(tmp_path: Path) -> None:
    frames = {"rgb": np.full((4, 3), 7, np.uint8)}
    means = [shards.entry("mean_rgb", shards.float_feature([1, 2, 3]))]
    expected: dict[Level, bool] = {"auto": True, "video": False}
    for level, unread in expected.items():
        schema = Schema({"mean_rgb": 3}, level)
        for tail, found in ((frames, unread), ({}, False)):
            path = shards.write_shard(tmp_path / "x", [shards.sequence_example("x", [1], tail, means)])
            (batch,) = batches(shards.sources([path]), schema, 100)
            assert (len(batch), batch.unread_frames) == (1, found)


@pytest.mark.parametrize("tail", [b"", b"\x12\x00", b"\x12\x80\x00", b"\x12\x80\x80\x80\x00", b"\x22\x00", b"\x20\x00"])
def test_an_empty_list_of_frames_however_it_is_written(tmp_path: Path, tail: bytes) -> None:
    means = {"mean_rgb": [1, 2, 3]}
    path = shards.write_shard(tmp_path / "x", [shards.example("x", [1], means) + tail])
    (given,) = batches(shards.sources([path]), Schema({"mean_rgb": 3}), 100)
    with shard_by_shard():
        (expected,) = batches(shards.sources([path]), Schema({"mean_rgb": 3}), 100)
    assert (len(given), given.unread_frames) == (1, expected.unread_frames)


def test_no_more_shards_are_looked_at_than_rows_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, counts, real = write(tmp_path, [5] * 30), list[int](), loops.active.decode_files
    assert real

    def noted(files: Any, *rest: Any) -> Any:
        counts.append(len(files))
        return real(files, *rest)

    monkeypatch.setattr(loops.active, "decode_files", noted)
    assert [len(batch) for batch in batches(shards.sources(paths), SCHEMA, 10)] == [10] * 15
    assert max(counts) <= 10 * 4 * 4 // (os.path.getsize(paths[0])) + 2
    assert sum(len(batch) for batch in batches(shards.sources(paths), Schema({}), 10)) == 150


def test_formats_of_others_are_asked(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_registered", [])
        assert RecordReaders(SCHEMA).plain_files
        toy_format.register()
        assert RecordReaders(SCHEMA).plain_files is None
    others: tuple[Level, ...] = ("frame", "segment")
    for level in others:
        assert RecordReaders(Schema(SCHEMA.inputs, level)).plain_files is None


def changing(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Have `change` happen when the first shard was decoded, as if it had been meanwhile."""
    decode = loops.active.decode_files
    assert decode

    def decoded(files: Any, *rest: Any) -> Any:
        done, _, records, _, *found = decode(files, *rest)
        change()
        return done - 1, True, records, files[done - 1][1], *found

    monkeypatch.setattr(loops.active, "decode_files", decoded)


def test_a_shard_that_grows_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write(tmp_path, [5])
    found = shards.sources([path])
    changing(monkeypatch, lambda: shards.write_shard(path, [payload(0)] * 9))
    with pytest.raises(InputError, match=r"000\.tfrecord: changed while it was read"):
        list(batches(found, SCHEMA, 100))


def test_a_shard_that_goes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = write(tmp_path, [5])
    found = shards.sources([path])
    changing(monkeypatch, lambda: os.unlink(path))
    with pytest.raises(InputError, match=r"000\.tfrecord: is gone"):
        list(batches(found, SCHEMA, 100))


def test_a_shard_that_seemed_to_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = shards.sources(write(tmp_path, [5]))
    changing(monkeypatch, lambda: None)
    (batch,) = batches(found, SCHEMA, 100)
    assert (len(batch), batch.finished, batch.end) == (5, [(0, 5)], Position(1, 0, 0))


@pytest.mark.parametrize("what", ["grown", "touched", "gone", "a folder", "a pipe"])
def test_the_compiled_loop_ends_before_a_shard_that_is_not_what_was_found(tmp_path: Path, what: str) -> None:
    paths = write(tmp_path, [5, 5, 5])
    found = shards.sources(paths)
    if what == "grown":
        shards.write_shard(paths[1], [payload(0)] * 9)
    elif what == "touched":
        os.utime(paths[1], ns=(0, 1))
    else:
        os.unlink(paths[1])
    if what == "a folder":
        os.mkdir(paths[1])
    elif what == "a pipe":
        os.mkfifo(paths[1])
    with shard_by_shard(), pytest.raises(InputError) as expected:
        list(batches(found, SCHEMA, 100))
    with pytest.raises(InputError) as given:
        list(batches(found, SCHEMA, 100))
    assert str(given.value) == str(expected.value)
    batch = next(batches(found, SCHEMA, 5))
    assert (len(batch), batch.finished) == (5, [(0, 5)])


@pytest.mark.parametrize("year", [1901, 1969, 2261, 2263, 2400])
def test_a_time_of_any_year(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    (path,) = write(tmp_path, [5])
    os.utime(path, ns=(0, (year - 1970) * 31_556_952 * 10**9 + 999_999_999))
    found = shards.sources([path])
    monkeypatch.delattr(LocalFile, "open")
    (batch,) = batches(found, SCHEMA, 100)
    assert len(batch) == 5


def test_a_path_that_is_no_utf8(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [5])
    odd = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff\xfe \n.tfrecord")
    os.rename(path, odd)
    (batch,) = batches(shards.sources([odd]), SCHEMA, 100)
    assert len(batch) == 5


def test_reading_stops_at_a_byte(tmp_path: Path) -> None:
    """Of the last shard; those before it are read to their ends."""
    paths = write(tmp_path, [5, 5, 5])
    found, starts = shards.sources(paths), shards.starts(paths[1])
    readers_ = RecordReaders(SCHEMA)
    for byte, count in ((starts[2], 7), (starts[2] + 1, 8), (starts[4] + 1, 10), (1, 6)):
        pool = batching.BufferPool(SCHEMA, 100, 1)
        batcher = batching.Batcher(pool, readers_, found, BEGINNING, skip=False)
        made: list[Batch] = [*batcher.read(BEGINNING, (1, byte)), *batcher.rest()]
        assert [len(batch) for batch in made] == [count]
        ended = count == 10
        assert made[0].finished == [(0, 5), (1, 5)][: 1 + ended]
        assert made[0].end.shard == 1 + ended


def test_a_record_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    long = payload(1) + shards.field(2, shards.field(9, bytes(2 * plain_files.ROOM)))
    paths = [shards.write_shard(tmp_path / f"{i}", [payload(0), long, payload(2)]) for i in range(2)]
    found = shards.sources([*paths, *write(tmp_path / "short", [5])])
    with shard_by_shard():
        expected = read(found, 4)
    assert read(found, 4) == expected
    assert [len(found) for found, *_ in expected] == [4, 4, 3]


def test_little_memory_is_taken() -> None:
    """By each thread, beside what the shards' own readers take."""
    tracemalloc.start()
    try:
        files = plain_files.plain_files(SCHEMA)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert files
    assert taken < 1 << 18


def test_as_many_labels_as_a_batch_may_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = {"rgb": [1.0, 2.0, 3.0], "audio": [4.0]}
    many = [shards.example(f"v{i}", range(300), features) for i in range(40)]
    paths = [shards.write_shard(tmp_path / f"{i}", many) for i in range(3)]
    monkeypatch.setattr(batching, "BATCH_LABEL_BYTES", 1)
    found = [len(batch) for batch in batches(shards.sources(paths), SCHEMA, 1000)]
    assert sum(found) == 120
    assert len(found) == 3


@given(
    st.lists(st.sampled_from([*KINDS, *["plain"] * 5]), max_size=12),
    st.lists(st.integers(0, 9999), max_size=4),
    st.integers(0, 4000),
    st.integers(0, 4000),
    st.integers(100, 9000),
)
@settings(max_examples=200, deadline=None)
def test_a_record_is_found_where_its_own_reader_finds_it(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str], flips: list[int], offset: int, more: int, block: int
) -> None:
    path = tmp_path_factory.mktemp("found") / "x"
    shards.write_shard(path, [made(number, kind) for number, kind in enumerate(kinds)])
    for byte in flips:
        if size := os.path.getsize(path):
            shards.flip_bit(path, 12 + byte % max(1, size - 12) if size > 12 else 0)
    (source,) = shards.sources([str(path)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrecord, "BLOCK_BYTES", block)
        patch.setattr(plain_files, "BLOCK_BYTES", block)
        files = plain_files.plain_files(SCHEMA)
        assert files
        if source.stat.size < 12:
            assert files.find(source, offset, offset + more) is None
            return
        with tfrecord.Shard(source) as shard:
            assert files.find(source, offset, offset + more) == (
                shard.find_record(offset, offset + more) if offset <= source.stat.size else None
            )


def test_a_record_is_found_behind_a_long_one(tmp_path: Path) -> None:
    """Of frames, say: what is read at once is shorter."""
    path = shards.write_shard(tmp_path / "x", [bytes(8 * plain_files.ROOM), payload(1)])
    (source,) = shards.sources([path])
    files = plain_files.plain_files(SCHEMA)
    assert files
    assert files.find(source, 1, 1 << 60) == shards.starts(path)[1]


def test_a_record_is_found_in_local_tfrecord_files_alone(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [5])
    (source,) = shards.sources([path])
    files = plain_files.plain_files(SCHEMA)
    assert files
    assert [files.find(source, 0, 1), files.find(source, 1, 1 << 60)] == [0, shards.starts(path)[1]]
    assert files.find(object(), 0, 1) is None  # type: ignore[arg-type]
    with open(path, "r+b") as file:
        file.write(b"\1")
    os.utime(path, ns=(0, int(source.stat.version)))
    assert files.find(source, 0, 1 << 60) is None
    os.utime(path, ns=(0, 5))
    assert files.find(source, 1, 1 << 60) is None
    os.unlink(path)
    assert files.find(source, 0, 1) is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"files": ()}, "not one file"),
        ({"offset": -1}, "no place"),
        ({"block": memoryview(bytearray(12))}, "no room"),
        ({"files": ((b"a", 1, 1),)}, "no tuple of four"),
    ],
)
def test_what_nothing_is_found_with(arguments: dict[str, Any], reason: str) -> None:
    find = loops.active.find_record
    assert find
    given: dict[str, Any] = {
        "files": ((b"/nowhere", 5, 1, 1),), "offset": 0, "stop": 1, "block": memoryview(bytearray(99))
    }  # fmt: skip
    assert find(*given.values()) == -1
    with pytest.raises(ValueError, match=reason):
        find(*(given | arguments).values())


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"files": ((b"a\0b", 1, 1, 1),)}, "NUL in a path"),
        ({"files": ((b"a", 1, 1),)}, "no tuple of four"),
        ({"files": ((b"a", 1, 1, 1),) * (MAX_FILES + 1)}, "too many files"),
        ({"offset": -1}, "before the file"),
        ({"stop": -1}, "before the file"),
        ({"last": 9}, "other sizes"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], reason: str) -> None:
    decode, sizes = loops.active.decode_files, RowSizes(8)
    assert decode
    given: dict[str, Any] = {
        "files": ((b"/nowhere", 5, 1, 0),), "offset": 0, "stop": 1, "block": memoryview(bytearray(99)),
        "inputs": ((b"rgb", 3),), "features": (np.empty((8, 3), np.float32),), "first": 0, "last": 8,
        "sizes": sizes.matrix, "enough": 1,
    }  # fmt: skip
    assert decode(*given.values()) == (0, False, [0], 0, b"", b"", False)
    with pytest.raises(ValueError, match=reason):
        decode(*(given | arguments).values())


def test_nothing_is_decoded_of_what_lies_elsewhere(tmp_path: Path) -> None:
    files = plain_files.plain_files(SCHEMA)
    assert files
    far = [object()]
    target = Target([], RowSizes(1), 0, 1, 1, 1)
    assert files.decode(far, BEGINNING, (1, 0), target) is None  # type: ignore[arg-type]
