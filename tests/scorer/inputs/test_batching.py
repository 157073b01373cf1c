"""Batches: rows in order across shard borders, exact resume positions, every bad record counted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.errors import InputError, RecordError, ShardError, Yt8mError
from scorer.inputs import batching as module
from scorer.inputs import plain_files, tfrecord
from scorer.inputs.batching import Batch, Quarantined, batches
from scorer.inputs.position import Position
from scorer.inputs.records import Schema
from tests import shards
from tests.loops import HERE, loops, needs_both, using  # noqa: F401

SCHEMA = Schema({"rgb": 3, "audio": 1})
START = Position(0, 0, 0)


class VideoRow(NamedTuple):
    id: bytes
    rgb: tuple[float, ...]
    audio: tuple[float, ...]
    labels: tuple[int, ...]


def payload(number: int) -> bytes:
    features = {"rgb": [number, number + 0.5, -number], "audio": [number * 2.0]}
    return shards.example(f"id{number}", range(number % 4), features)


def video(number: int) -> VideoRow:
    return VideoRow(b"id%d" % number, (number, number + 0.5, -number), (number * 2.0,), tuple(range(number % 4)))


def write(folder: Path, counts: list[int]) -> list[str]:
    """Shards of so many numbered videos each."""
    folder.mkdir(exist_ok=True)
    first = np.cumsum([0, *counts])
    return [
        shards.write_shard(folder / f"{i:03}.tfrecord", map(payload, range(first[i], first[i] + count)))
        for i, count in enumerate(counts)
    ]


def rows(batch: Batch) -> list[VideoRow]:
    splits, values = batch.label_splits.tolist(), batch.label_values.tolist()
    rgb, audio = batch.features["rgb"], batch.features["audio"]
    return [
        VideoRow(id, tuple(rgb[i].tolist()), tuple(audio[i].tolist()), tuple(values[first:last]))
        for i, (id, first, last) in enumerate(zip(batch.ids, splits, splits[1:], strict=False))
    ]


def collect(paths: list[str], size: int, **options: Any) -> tuple[list[VideoRow], list[Quarantined], list[Any]]:
    videos, quarantined, finished = [], [], []
    for batch in batches(shards.sources(paths), SCHEMA, size, **options):
        assert len(batch) <= size
        assert all(values.shape == (len(batch), SCHEMA.inputs[name]) for name, values in batch.features.items())
        videos += rows(batch)
        quarantined += batch.quarantined
        finished += batch.finished
        batch.release()
    return videos, quarantined, finished


@pytest.mark.parametrize("size", [1, 2, 7, 10, 100])
def test_rows_run_across_shards_in_order(tmp_path: Path, size: int) -> None:
    counts = [3, 1, 10, 6]
    paths = write(tmp_path, counts)
    videos, quarantined, finished = collect(paths, size)
    assert videos == [video(number) for number in range(20)]
    assert quarantined == []
    assert finished == list(enumerate(counts))


def test_all_batches_but_the_last_are_full(tmp_path: Path) -> None:
    paths = write(tmp_path, [3, 1, 10, 6])
    assert [len(batch) for batch in batches(shards.sources(paths), SCHEMA, 8)] == [8, 8, 4]
    assert [len(batch) for batch in batches(shards.sources(paths), SCHEMA, 10)] == [10, 10]


def test_a_shard_is_finished_in_the_batch_of_its_last_row(tmp_path: Path) -> None:
    paths = write(tmp_path, [4, 4, 2])
    assert [[index for index, _ in batch.finished] for batch in batches(shards.sources(paths), SCHEMA, 4)] == [
        [0],
        [1],
        [2],
    ]
    assert [batch.end for batch in batches(shards.sources(paths), SCHEMA, 4)] == [Position(i, 0, 0) for i in (1, 2, 3)]


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("damage", [shards.damage_payload, shards.damage_length])
def test_resume_at_every_batch(tmp_path: Path, size: int, damage: Any) -> None:
    paths = write(tmp_path, [4, 3, 5])
    damage(paths[1], 1)
    whole = collect(paths, size, on_error="skip")
    videos: list[VideoRow] = []
    quarantined: list[Quarantined] = []
    finished: list[Any] = []
    for batch in batches(shards.sources(paths), SCHEMA, size, on_error="skip"):
        videos, quarantined, finished = videos + rows(batch), quarantined + batch.quarantined, finished + batch.finished
        rest = collect(paths, size, on_error="skip", start=batch.end)
        assert (videos + rest[0], quarantined + rest[1], finished + rest[2]) == whole


def test_start_at_every_record(tmp_path: Path) -> None:
    paths = write(tmp_path, [4, 3])
    for index, first in ((0, 0), (1, 4)):
        for record, offset in enumerate(shards.starts(paths[index])):
            videos, _, finished = collect(paths, 3, start=Position(index, record, offset))
            assert videos == [video(number) for number in range(first + record, 7)]
            assert [count for _, count in finished] == [4, 3][index:]


def test_start_past_the_last_shard(tmp_path: Path) -> None:
    assert collect(write(tmp_path, [2]), 3, start=Position(1, 0, 0)) == ([], [], [])


def test_no_shards() -> None:
    assert collect([], 3) == ([], [], [])


def test_bad_payload_is_one_record(tmp_path: Path) -> None:
    paths = write(tmp_path, [4, 3])
    shards.damage_payload(paths[0], 2)
    videos, quarantined, finished = collect(paths, 3, on_error="skip")
    assert [v.id for v in videos] == [b"id0", b"id1", b"id3", b"id4", b"id5", b"id6"]
    assert quarantined == [Quarantined(paths[0], 2, shards.starts(paths[0])[2], "the payload fails its CRC32C", 0)]
    assert [count for _, count in finished] == [4, 3]


def test_bad_length_is_the_rest_of_the_shard(tmp_path: Path) -> None:
    paths = write(tmp_path, [4, 3])
    starts = shards.starts(paths[0])
    shards.damage_length(paths[0], 2)
    videos, quarantined, finished = collect(paths, 3, on_error="skip")
    assert [v.id for v in videos] == [b"id0", b"id1", b"id4", b"id5", b"id6"]
    reason = "the length fails its CRC32C, and with it all that follows is lost"
    assert quarantined == [Quarantined(paths[0], 2, starts[2], reason, starts[4] - starts[2])]
    assert [count for _, count in finished] == [3, 3]


def test_empty_shard_is_quarantined(tmp_path: Path) -> None:
    paths = write(tmp_path, [2, 0, 1])
    videos, quarantined, finished = collect(paths, 9, on_error="skip")
    assert len(videos) == 3
    assert quarantined == [Quarantined(paths[1], 0, 0, "the file is empty", 0)]
    assert [count for _, count in finished] == [2, 1, 1]


def test_bad_content_is_one_record(tmp_path: Path) -> None:
    path = shards.write_shard(tmp_path / "x", [payload(0), b"", payload(1), payload(2)[:-3], payload(3)])
    videos, quarantined, _ = collect([path], 2, on_error="skip")
    assert videos == [video(0), video(1), video(3)]
    assert [(q.record, q.offset, q.bytes_lost) for q in quarantined] == [(i, shards.starts(path)[i], 0) for i in (1, 3)]


def test_fail_yields_full_batches_first(tmp_path: Path) -> None:
    paths = write(tmp_path, [8])
    shards.damage_payload(paths[0], 5)
    reader = batches(shards.sources(paths), SCHEMA, 2)
    assert rows(next(reader)) + rows(next(reader)) == [video(number) for number in range(4)]
    with pytest.raises(ShardError, match="record 5 at byte"):
        next(reader)


@pytest.mark.parametrize(
    ("content", "error"), [(b"", ShardError), (b"no TFRecord at all", ShardError), (shards.frame(b""), RecordError)]
)
def test_fail_raises(tmp_path: Path, content: bytes, error: type[Yt8mError]) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(error, match="record 0 at byte 0"):
        collect([str(tmp_path / "x")], 4)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_missing_shard_is_always_an_error(tmp_path: Path, on_error: str) -> None:
    with pytest.raises(InputError, match="no such file"):
        collect([*write(tmp_path, [2]), str(tmp_path / "absent")], 9, on_error=on_error)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_shard_that_grows_meanwhile_is_an_error(tmp_path: Path, on_error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(tmp_path, [40])
    monkeypatch.setattr(tfrecord, "BLOCK_BYTES", 300)
    reader = batches(shards.sources(paths), SCHEMA, 2, on_error=on_error)
    next(reader)
    with open(paths[0], "ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match=r"changed (while it was read|since it was found)"):
        list(reader)


def test_labelled(tmp_path: Path) -> None:
    plain = shards.example("plain", None, {"rgb": [1, 2, 3], "audio": [1]})
    empty = shards.example("empty", [], {"rgb": [1, 2, 3], "audio": [1]})
    path = shards.write_shard(tmp_path / "x", [plain, plain, plain, empty, plain, plain])
    assert [batch.labelled for batch in batches(shards.sources([path]), SCHEMA, 2)] == [False, True, False]


def test_buffers_are_reused_after_release_only(tmp_path: Path) -> None:
    paths = write(tmp_path, [30])
    kept = list(batches(shards.sources(paths), SCHEMA, 3))
    assert [row for batch in kept for row in rows(batch)] == [video(number) for number in range(30)]
    released = set()
    for batch in batches(shards.sources(paths), SCHEMA, 3):
        released.add(batch.features["rgb"].__array_interface__["data"][0])
        batch.release()
        batch.release()
    assert len(released) <= 2


def test_buffers_are_reused_after_the_last_of_several_users(tmp_path: Path) -> None:
    reader = batches(shards.sources(write(tmp_path, [30])), SCHEMA, 3)
    first = next(reader)
    first.retain()
    first.release()
    assert not any(np.shares_memory(first.features["rgb"], next(reader).features["rgb"]) for _ in range(3))
    first.release()
    assert np.shares_memory(first.features["rgb"], next(reader).features["rgb"])


def test_a_shard_of_bad_records_alone_keeps_batches_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_QUARANTINED", 10)
    path = shards.write_shard(tmp_path / "x", [b""] * 95)
    found = [len(batch.quarantined) for batch in batches(shards.sources([path]), SCHEMA, 1000, on_error="skip")]
    assert found == [10] * 9 + [5]


def test_many_labels_end_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_LABEL_BYTES", 1000)
    monkeypatch.setattr(tfrecord, "MAX_BLOCK_RECORDS", 1)
    monkeypatch.setattr(tfrecord, "BLOCK_BYTES", 1500)
    monkeypatch.setattr(plain_files, "ROOM", 1500)
    payloads = [shards.example(f"id{i}", range(600), {"rgb": [1, 2, 3], "audio": [1]}) for i in range(5)]
    path = shards.write_shard(tmp_path / "x", payloads)
    assert sum(len(batch) for batch in batches(shards.sources([path]), SCHEMA, 1000)) == 5
    assert max(len(batch.label_values) for batch in batches(shards.sources([path]), SCHEMA, 1000)) <= 1600


@given(
    st.lists(st.lists(st.sampled_from(["good", "irregular", "bad"]), max_size=9), max_size=5),
    st.integers(1, 12),
    st.integers(100, 900),
)
@settings(max_examples=60)
def test_read_is_scored_plus_quarantined(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[list[str]], size: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("sum")
    make = {"good": payload, "irregular": lambda n: payload(n) + b"\x2a\x00", "bad": lambda n: payload(n)[:-1]}
    paths = [
        shards.write_shard(folder / f"{i}", [make[kind](n) for n, kind in enumerate(shard)])
        for i, shard in enumerate(kinds)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tfrecord, "BLOCK_BYTES", block)
        videos, quarantined, finished = collect(paths, size, on_error="skip")
    assert len(videos) + len(quarantined) == sum(read for _, read in finished)
    assert videos == [video(n) for shard in kinds for n, kind in enumerate(shard) if kind != "bad"]
    assert len(finished) == len(paths)


def kinds_of_payload(number: int) -> dict[str, bytes]:
    """Ordinary payloads, others that are good too, and bad ones."""
    rgb, audio = [number, number + 0.5, -number], [number * 2.0]
    features: dict[str, list[float]] = {"rgb": rgb, "audio": audio}
    return {
        "plain": payload(number),
        "unlabelled": shards.example(f"u{number}", None, features),
        "2017": shards.example(f"v{number}", [1, 300, -1], features, id_key="video_id"),
        "irregular": payload(number) + b"\x2a\x00",
        "accented": shards.example("\u00e9", [2], features),
        "nul": shards.example(b"a\0", [2], features),
        "no id": shards.example(None, [2], features),
        "infinite": shards.example(f"i{number}", [1], features | {"rgb": [1, 2, np.inf]}),
        "narrow": shards.example(f"n{number}", [1], features | {"rgb": rgb[:2]}),
        "short": payload(number)[:-1],
        "empty": b"",
        "long": shards.example(f"l{number}", range(300), features),
    }


@needs_both
@given(
    st.lists(st.lists(st.sampled_from([*kinds_of_payload(0), *["plain"] * 9]), max_size=12), max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5000)), max_size=2),
    st.integers(1, 12),
    st.integers(100, 2000),
)
@settings(max_examples=100, deadline=None)
def test_records_taken_straight_are_those_of_blocks(
    tmp_path_factory: pytest.TempPathFactory,
    kinds: list[list[str]],
    damage: list[tuple[int, int]],
    size: int,
    bytes_at_once: int,
) -> None:
    folder = tmp_path_factory.mktemp("straight")
    made = [[kinds_of_payload(n)[kind] for n, kind in enumerate(shard)] for shard in kinds]
    paths = [shards.write_shard(folder / f"{i}", shard) for i, shard in enumerate(made)]
    for index, byte in damage:
        if index < len(paths) and (length := Path(paths[index]).stat().st_size):
            shards.flip_bit(paths[index], byte % length)
    found = []
    for name in HERE:  # in NumPy all records come by way of blocks
        with pytest.MonkeyPatch.context() as patch, using(name):
            patch.setattr(tfrecord, "BLOCK_BYTES", bytes_at_once)
            found.append(
                [
                    (rows(batch), batch.labelled, batch.end, batch.quarantined, batch.finished)
                    for batch in batches(shards.sources(paths), SCHEMA, size, on_error="skip")
                ]
            )
    assert found[0] == found[1]
