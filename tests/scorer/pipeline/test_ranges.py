"""Threads that each decode a range of the records give what one decoder gives, whatever is in the shards."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.errors import Yt8mError
from scorer.inputs import batching, tfrecord
from scorer.inputs.batching import Batch, batches
from scorer.inputs.discover import find_shards
from scorer.inputs.plain_files import PlainFiles
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.records import BLOCK_BYTES, Schema
from scorer.inputs.source import Reader, Source
from scorer.pipeline import ranges
from scorer.pipeline.ranges import RangeReader
from tests import shards
from tests.loops import needs_both, using
from tests.scorer.inputs.test_batching import SCHEMA, kinds_of_payload, payload, write
from tests.scorer.inputs.toy_source import CONTENT, ToySource, find
from tests.scorer.threads import no_threads_left


@pytest.fixture(autouse=True)
def however_little_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "WORTH_RANGES", 0)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    with no_threads_left():
        yield


class Read(NamedTuple):
    """All that a reader gave, apart from where its batches ended."""

    videos: list[Any]
    quarantined: list[Any]
    label_faults: list[str]
    finished: list[tuple[int, int]]
    end: Position
    error: str


def videos(batch: Batch) -> list[Any]:
    """Id, features and labels of each."""
    splits, values = batch.label_splits.tolist(), batch.label_values.tolist()
    features = batch.features.values() if len(batch) else []
    return [
        (id, [rows[i].tolist() for rows in features], values[splits[i] : splits[i + 1]])
        for i, id in enumerate(batch.ids)
    ]


def everything(found: Iterator[Batch]) -> Read:
    read = Read([], [], [], [], BEGINNING, "")
    try:
        for batch in found:
            read.videos.extend(videos(batch))
            read.quarantined.extend(batch.quarantined)
            read.label_faults.extend(map(str, batch.label_faults))
            read.finished.extend(batch.finished)
            read = read._replace(end=batch.end)
            batch.release()
    except Yt8mError as error:
        read = read._replace(error=str(error))
    return read


def in_ranges(
    found: Sequence[Source],
    size: int,
    threads: int,
    *,
    skip: bool,
    start: Position = BEGINNING,
    schema: Schema = SCHEMA,
    range_batches: int = 1,
) -> Read:
    reader = RangeReader(
        found, schema, size, lambda batch: None, threads=threads, skip=skip, range_batches=range_batches
    )
    return everything(done.batch for some in reader.read(start) for done in some)


def in_turn(
    found: Sequence[Source], size: int, *, skip: bool, start: Position = BEGINNING, schema: Schema = SCHEMA
) -> Read:
    return everything(batches(found, schema, size, start=start, on_error="skip" if skip else "fail"))


def with_more(number: int, more: bytes) -> bytes:
    """A good record with a feature that nobody asks for."""
    return shards.example_of(
        [
            shards.entry("more", shards.bytes_feature(more)),
            shards.entry("id", shards.bytes_feature(b"more%d" % number)),
            shards.entry("labels", shards.int64_feature([number])),
            shards.entry("rgb", shards.float_feature([number, 1, 2])),
            shards.entry("audio", shards.float_feature([3])),
        ]
    )


def nested(number: int) -> bytes:
    """One that holds whole records of a TFRecord file, good ones and a bad one."""
    return with_more(number, b"".join(map(shards.frame, [payload(500 + number), b"", payload(600 + number)])))


KINDS = [*kinds_of_payload(0), *["plain"] * 12, "nested", "nested", "very long"]


def made(number: int, kind: str) -> bytes:
    if kind == "nested":
        return nested(number)
    if kind == "very long":
        return with_more(number, b"x" * 3000)
    return kinds_of_payload(number)[kind]


@given(
    kinds=st.lists(st.lists(st.sampled_from(KINDS), max_size=40), max_size=5),
    damage=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["flip", "cut"]), st.integers(0, 20_000)), max_size=3),
    size=st.integers(1, 12),
    threads=st.integers(2, 4),
    range_batches=st.integers(1, 4),
    block=st.integers(1000, 4000),
    skip=st.booleans(),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_ranges_give_what_one_decoder_gives(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[list[str]],
    damage: list[tuple[int, str, int]],
    size: int,
    threads: int,
    range_batches: int,
    block: int,
    skip: bool,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("ranges")
    found = shards.sources(shards.write_damaged(folder, kinds, made, damage))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrecord, "BLOCK_BYTES", block)
        patch.setattr(ranges, "BLOCK_BYTES", block)
        patch.setattr(batching, "MAX_QUARANTINED", 4)
        expected = in_turn(found, size, skip=skip)
        given = in_ranges(found, size, threads, skip=skip, range_batches=range_batches)
        if expected.error:  # how much of what comes before is dropped with the error's batch depends on the batches
            assert given.error == expected.error
            most = in_turn(found, 1, skip=skip)
            assert given.videos == most.videos[: len(given.videos)]
            return
        assert given == expected
        ends = [batch.end for batch in batches(found, SCHEMA, size, on_error="skip")]
        if ends and skip:
            start = data.draw(st.sampled_from(ends))
            assert (
                in_ranges(found, size, threads, skip=True, start=start)[:4]
                == in_turn(found, size, skip=True, start=start)[:4]
            )


@pytest.mark.parametrize("frames", [False, True])
def test_threads_decode_all_of_a_long_shard_and_of_many_short_ones(tmp_path: Path, frames: bool) -> None:
    """And not the caller, as it does what could not be decoded in ranges."""
    paths, schema = write(tmp_path, [400, *[7] * 40]), SCHEMA
    if frames:
        schema = Schema({"mean_rgb": 3, "mean_audio": 1})
        paths = [frame_level(tmp_path / f"{i}", [2] * count) for i, count in enumerate((400, *[7] * 40))]
    made: list[tuple[str, int]] = []

    def note(batch: Batch) -> None:
        made.append((threading.current_thread().name, len(batch)))

    reader = RangeReader(shards.sources(paths), schema, 50, note, threads=3)
    assert everything(done.batch for some in reader.read() for done in some).end == Position(41, 0, 0)
    assert sum(count for _, count in made) == 680
    assert {name.split()[0] for name, _ in made} == {"predict"}
    assert len(made) > 680 // 50


@needs_both
def test_bytes_without_a_record_are_searched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches would have the same bytes searched again and again."""
    long = [*map(payload, range(100)), bytes(20 << 20), *map(payload, range(100, 200))]
    found = shards.sources([shards.write_shard(tmp_path / "x", long)])
    searched, real = list[int](), PlainFiles.find

    def noted(self: PlainFiles, shard: Source, offset: int, stop: int) -> int | None:
        place = real(self, shard, offset, stop)
        searched.append((min(stop, offset + BLOCK_BYTES) if place is None else place) - offset)
        assert sum(searched) < shard.stat.size + BLOCK_BYTES
        return place

    monkeypatch.setattr(PlainFiles, "find", noted)
    assert len(in_ranges(found, 2, 2, skip=True).videos) == 200
    assert searched


def frame_level(path: Path, counts: Sequence[int] = (2,) * 30) -> str:
    """Records of so many frames each."""
    made = [
        {"rgb": np.full((count, 3), i % 256, np.uint8), "audio": np.full((count, 1), 9, np.uint8)}
        for i, count in enumerate(counts)
    ]
    return shards.write_shard(
        path, [shards.sequence_example(f"f{i:03}", [i % 100], frames) for i, frames in enumerate(made)]
    )


@given(
    counts=st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=3),
    damage=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20_000)), max_size=2),
    size=st.integers(1, 12),
    block=st.integers(1000, 4000),
)
@settings(max_examples=40, deadline=None)
def test_frames_are_averaged_in_ranges_too(
    tmp_path_factory: pytest.TempPathFactory,
    counts: list[list[int]],
    damage: list[tuple[int, int]],
    size: int,
    block: int,
) -> None:
    folder, schema = tmp_path_factory.mktemp("frames"), Schema({"mean_rgb": 3, "mean_audio": 1}, "frame")
    paths = [frame_level(folder / f"{i}", some) for i, some in enumerate(counts)]
    for index, byte in damage:
        if index < len(paths) and (length := Path(paths[index]).stat().st_size):
            shards.flip_bit(paths[index], byte % length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrecord, "BLOCK_BYTES", block)
        patch.setattr(ranges, "BLOCK_BYTES", block)
        found = shards.sources(paths)
        expected = in_turn(found, size, skip=True, schema=schema)
        assert in_ranges(found, size, 3, skip=True, schema=schema) == expected
        with using("numpy"):
            assert in_turn(found, size, skip=True, schema=schema) == expected


class Far(ToySource):
    """A source that is opened ahead, as objects in stores are."""

    def begin(self) -> Begun:
        return Begun(self)


class Begun(NamedTuple):
    source: Far

    def reader(self) -> Reader:
        return self.source.open()

    def close(self) -> None:
        pass


def test_shards_of_another_kind_of_source_are_shared_among_threads_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole ones, a few to a thread; one of 0 bytes stands among them."""
    paths = write(tmp_path, [7] * 40)
    for path in paths:
        CONTENT[f"shared/{Path(path).name}"] = 1, Path(path).read_bytes()
    CONTENT["shared/010a.tfrecord"] = 1, b""
    found = find_shards(["toy://shared"], allow_empty=True)
    assert len(found) == 41
    expected = in_turn(found, 100, skip=False)
    monkeypatch.delattr(RangeReader, "_in_turn")
    given = in_ranges(found, 100, 3, skip=False)
    assert given == expected
    assert (len(given.videos), given.finished[11]) == (280, (11, 0))


def test_formats_and_sources_that_are_decoded_in_turn_stand_between_ranges(tmp_path: Path) -> None:
    paths = write(tmp_path / "plain", [30, 5, 40])
    packed = tmp_path / "packed.tfrecord"
    packed.write_bytes(gzip.compress(Path(paths[0]).read_bytes(), 0))
    CONTENT["between/x.tfrecord"] = 1, Path(paths[1]).read_bytes()
    toy = Far("toy://between/x.tfrecord", find("toy://between/x.tfrecord")[0].stat)
    first, second, third = shards.sources(paths)
    extra = shards.sources([frame_level(tmp_path / "frames"), str(packed)])
    found = [toy, first, extra[0], toy, toy, second, extra[1], third, extra[0], toy]
    for size in (4, 11, 100):
        given, expected = in_ranges(found, size, 3, skip=True), in_turn(found, size, skip=True)
        assert given == expected
        assert len(given.videos) == 4 * 5 + 30 + 5 + 30 + 40
        assert len(given.quarantined) == 2 * 30  # the schema has no means of frames


def test_a_shard_that_is_gone_is_an_error_after_what_comes_before_it(tmp_path: Path) -> None:
    paths = write(tmp_path, [30, 30, 30])
    found = shards.sources(paths)
    Path(paths[1]).unlink()
    for skip in (True, False):
        given = in_ranges(found, 4, 3, skip=skip)
        assert "001.tfrecord: cannot be opened" in given.error
        assert given.videos == in_turn(found[:1], 4, skip=True).videos


def test_nothing_compiled_is_no_error(tmp_path: Path) -> None:
    found = shards.sources(write(tmp_path, [30, 30]))
    with using("numpy"):
        assert in_ranges(found, 4, 3, skip=False) == in_turn(found, 4, skip=False)


def test_closing_early_ends_the_threads(tmp_path: Path) -> None:
    reader = RangeReader(shards.sources(write(tmp_path, [500])), SCHEMA, 4, lambda batch: None, threads=3)
    found = reader.read()
    next(found)
    found.close()


def test_little_is_decoded_in_full_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranges, "WORTH_RANGES", 1 << 20)
    reader = RangeReader(shards.sources(write(tmp_path, [30, 2])), SCHEMA, 8, len, threads=3)
    assert [done.result for some in reader.read() for done in some] == [8, 8, 8, 8]
