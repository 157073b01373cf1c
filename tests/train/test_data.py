"""Shards to arrays: what is read, what is refused and where it says so, and how some are held out."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scorer.errors import Hint, InputError, OutputError, RecordError, TrainingError, UsageError
from tests.shards import example, sequence_example, sources, starts, write_shard
from tests.train.shards import INPUTS, LABELS, videos, write
from train import data
from train.data import Split, label_count, load, padded
from train.gather import Resident, Streamed

SPLITS: tuple[Split, Split] = ("train", "valid")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.tfrecord", 30, seed) for seed in (0, 1)]
    read = load(sources(paths), INPUTS, LABELS)
    for index in range(2):
        expected = np.concatenate([videos(30, seed).features[index] for seed in (0, 1)])
        assert np.array_equal(read.features[index], expected)
    assert np.array_equal(read.labels, np.concatenate([videos(30, seed).labels for seed in (0, 1)]))
    assert read.ids == [f"v{seed}-{row}".encode() for seed in (0, 1) for row in range(30)]
    assert load(sources(paths[:1]), INPUTS[:1], LABELS).features[0].shape == (30, 8)


def test_parquet_is_read_as_records_are(tmp_path: Path) -> None:
    arrow: Any = pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is absent (extra parquet)")
    plain = load(sources([write(tmp_path / "plain.tfrecord", 30)]), INPUTS, LABELS)
    labels = [row[row >= 0].tolist() for row in plain.labels]
    columns = {name: [*values] for (name, _), values in zip(INPUTS, plain.features, strict=True)}
    table = arrow.table({"id": [id.decode() for id in plain.ids], "labels": labels, **columns})
    arrow.parquet.write_table(table, tmp_path / "videos.parquet", row_group_size=7)
    read = load(sources([str(tmp_path / "videos.parquet")]), INPUTS, LABELS)
    assert read.ids == plain.ids
    assert np.array_equal(read.labels, plain.labels)
    assert all(map(np.array_equal, read.features, plain.features))


def test_columns_with_other_names(tmp_path: Path) -> None:
    arrow: Any = pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
    pytest.importorskip("pyarrow.parquet", reason="pyarrow is absent (extra parquet)")
    plain = load(sources([write(tmp_path / "plain.tfrecord", 30)]), INPUTS, LABELS)
    columns = {f"my_{name}": [*values] for (name, _), values in zip(INPUTS, plain.features, strict=True)}
    labels = [row[row >= 0].tolist() for row in plain.labels]
    table = arrow.table({"key": [id.decode() for id in plain.ids], "tags": labels, **columns})
    arrow.parquet.write_table(table, tmp_path / "videos.parquet")
    shards = sources([str(tmp_path / "videos.parquet")])
    named = {"id": "key", "labels": "tags", **{name: f"my_{name}" for name, _ in INPUTS}}
    for cache in (None, tmp_path / "cache"):
        read = load(shards, INPUTS, LABELS, cache=cache, columns=named)
        assert read.fingerprint() == plain.fingerprint()
        assert all(map(np.array_equal, read.features, plain.features))
    with pytest.raises(InputError, match="there is no column") as caught:
        load(shards, INPUTS, LABELS, cache=tmp_path / "cache")
    assert Hint.COLUMNS in caught.value.hints
    with pytest.raises(UsageError, match="there is no feature 'rgb' to name a column for"):
        load(shards, INPUTS, LABELS, columns={"rgb": "x"})
    with pytest.raises(RecordError, match=r"record \d+ at byte \d+: label \d+ is outside 0..1"):
        load(shards, INPUTS, 2, columns=named)


@pytest.mark.parametrize("cached", [False, True])
def test_compressed_shards_are_read_whatever_they_hold(tmp_path: Path, cached: bool) -> None:
    """More videos than their bytes promise."""
    path = write(tmp_path / "plain", 30)
    nothing = {name: [0.0] * width for name, width in INPUTS}
    many = write_shard(tmp_path / "many", [example(f"z{row}", [1], nothing) for row in range(6000)])
    (tmp_path / "packed").write_bytes(b"".join(gzip.compress(Path(name).read_bytes()) for name in (path, many)))
    cache = tmp_path / "cache" if cached else None
    packed = load(sources([str(tmp_path / "packed")]), INPUTS, LABELS, cache=cache)
    plain = load(sources([path, many]), INPUTS, LABELS)
    assert packed.fingerprint() == plain.fingerprint()
    assert all(np.array_equal(*both) for both in zip(packed.features, plain.features, strict=True))


def test_frames_are_read_as_their_means(tmp_path: Path) -> None:
    """Records of one frame, smaller than their means."""
    made = [videos(30, seed) for seed in range(100)]
    records = [
        sequence_example(
            id,
            labels[labels >= 0].tolist(),
            {"RGB/feature/floats": rgb[None], "AUDIO/feature/floats": audio[None]},
        )
        for some in made
        for id, labels, rgb, audio in zip(some.ids, some.labels, *some.features, strict=True)
    ]
    read = load(sources([write_shard(tmp_path / "x", records)]), INPUTS, LABELS)
    assert read.ids == [id for some in made for id in some.ids]
    for index in range(2):
        assert np.array_equal(read.features[index], np.concatenate([some.features[index] for some in made]))


def test_the_fingerprint_tells_videos_apart() -> None:
    assert videos(30).fingerprint() == videos(30).fingerprint() != videos(30, seed=1).fingerprint()


def test_labels_are_distinct_ascending_and_padded() -> None:
    matrix = padded(np.array([7, 3, 7, 5]), np.array([3, 0, 1]))
    assert matrix.tolist() == [[3, 7], [-1, -1], [5, -1]]
    assert padded(np.zeros(0, np.int64), np.zeros(2, np.int64)).tolist() == [[-1], [-1]]


@pytest.mark.parametrize("label", [LABELS, -1])
def test_a_label_outside_the_range_is_named_with_its_place(label: int, tmp_path: Path) -> None:
    features = {name: [0.0] * width for name, width in INPUTS}
    records = [example(f"v{row}", [label if row == 2 else 1], features) for row in range(4)]
    path = write_shard(tmp_path / "bad.tfrecord", records)
    reason = f"label {label} is outside 0..{LABELS - 1}" if label > 0 else f"label {label} is below 0"
    with pytest.raises(RecordError, match=reason) as caught:
        load(sources([write(tmp_path / "good.tfrecord", 3), path]), INPUTS, LABELS)
    assert (caught.value.path, caught.value.record, caught.value.offset) == (path, 2, starts(path)[2])


def test_labels_of_another_kind_are_an_error_here(tmp_path: Path) -> None:
    features: dict[str, list[float]] = {name: [0.0] * width for name, width in INPUTS}
    path = write_shard(tmp_path / "bad.tfrecord", [example("v", None, features | {"labels": [1.0]})])
    with pytest.raises(RecordError, match="record 0 at byte 0: feature 'labels' is a float_list"):
        load(sources([path]), INPUTS, LABELS)


def test_all_labels_are_looked_at_before_too_many_are_an_error(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{label}.tfrecord", 3, label, labels=[1, label]) for label in (30, 4000, 20)]
    reason = r"label 30 is outside 0\.\.24; 6 videos have such labels, up to 4000"
    with pytest.raises(RecordError, match=reason) as caught:
        load(sources(paths), INPUTS, LABELS)
    assert (caught.value.path, caught.value.record) == (paths[0], 0)
    assert caught.value.remedy == "train a model of 4716 labels, as YouTube-8M's 2017 release has"
    assert load(sources(paths), INPUTS, None).labels.max() == 4000


@pytest.mark.parametrize(
    ("largest", "count"), [(0, 1), (49, 50), (1930, 1931), (1931, 3862), (3861, 3862), (3862, 4716), (4716, 4717)]
)
def test_a_model_has_as_many_labels_as_the_videos_need_or_their_vocabulary_has(largest: int, count: int) -> None:
    assert label_count(largest)[0] == count


def test_a_shard_without_labels_is_named(tmp_path: Path) -> None:
    features = {name: [0.0] * width for name, width in INPUTS}
    path = write_shard(tmp_path / "test.tfrecord", [example("v", None, features)])
    with pytest.raises(TrainingError, match=r"test\.tfrecord: its videos have no labels"):
        load(sources([write(tmp_path / "good.tfrecord", 3), path]), INPUTS, LABELS)


def test_all_cores_decode_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards of all sizes, in batches that end anywhere; labels and the lack of them are found where they are."""
    features = {name: [0.0] * width for name, width in INPUTS}
    paths = [write(tmp_path / f"{seed}.tfrecord", count, seed) for seed, count in enumerate((30, 1, 2, 90, 7))]
    bad = write_shard(tmp_path / "bad", [example(f"b{i}", [-1 if i == 37 else 1], features) for i in range(40)])
    none = write_shard(tmp_path / "none", [example(f"n{i}", None, features) for i in range(40)])
    half = write_shard(tmp_path / "half", [example(f"h{i}", [1] if i == 22 else None, features) for i in range(40)])
    expected = load(sources([*paths, half]), INPUTS, LABELS)
    monkeypatch.setattr("scorer.pipeline.ranges.WORTH_RANGES", 0)
    monkeypatch.setattr(data, "usable_cores", lambda: 3)
    for most in (1, 5, 13):
        monkeypatch.setattr(data, "_READ", most)
        found = load(sources([*paths, half]), INPUTS, LABELS)
        assert found.ids == expected.ids
        assert np.array_equal(found.labels, expected.labels)
        assert all(map(np.array_equal, found.features, expected.features))
        with pytest.raises(RecordError, match="label -1 is below 0") as caught:
            load(sources([*paths, bad, half]), INPUTS, LABELS)
        assert (caught.value.path, caught.value.record, caught.value.offset) == (bad, 37, starts(bad)[37])
        with pytest.raises(TrainingError, match="none: its videos have no labels"):
            load(sources([*paths, half, none, half]), INPUTS, LABELS)


def test_an_absent_shard(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load(sources([str(tmp_path / "absent.tfrecord")]), INPUTS, LABELS)


def test_the_held_out_depend_on_their_ids_alone(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.tfrecord", 200, seed) for seed in (0, 1)]
    everything = load(sources(paths), INPUTS, LABELS)
    kept, held = (load(sources(paths), INPUTS, LABELS, split=split) for split in SPLITS)
    rows = [everything.ids.index(id) for id in held.ids]
    assert sorted(kept.ids + held.ids) == sorted(everything.ids)
    assert np.array_equal(held.features[0], everything.features[0][rows])
    assert np.array_equal(held.labels, everything.labels[rows][:, : held.labels.shape[1]])
    held_of_first = load(sources(paths[:1]), INPUTS, LABELS, split="valid")
    assert set(held_of_first.ids) == {id for id in held.ids if id.startswith(b"v0")}
    assert 20 <= len(held) <= 60


def test_a_cache_is_used_until_a_shard_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = write(tmp_path / "a.tfrecord", 30), tmp_path / "cache"
    first = load(sources([path]), INPUTS, LABELS, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(data, "_decode", None)
        again = load(sources([path]), INPUTS, LABELS, cache=cache)
    for read in (first, again):
        assert isinstance(read.features[0], np.memmap)
        assert np.array_equal(read.features[1], videos(30).features[1])
        assert np.array_equal(read.labels, videos(30).labels)
        assert read.ids == videos(30).ids
    write(tmp_path / "a.tfrecord", 31)
    assert len(load(sources([path]), INPUTS, LABELS, cache=cache)) == 31
    assert len(load(sources([path]), INPUTS, LABELS, split="valid", cache=cache)) < 31
    assert len(list(cache.iterdir())) == 3


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".moved"))
    path.symlink_to(path.with_suffix(".moved"))


def other_names(path: Path) -> None:
    path.with_suffix(".again").hardlink_to(path)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def saved(array: Any) -> Callable[[Path], None]:
    return lambda path: np.save(path, array, allow_pickle=True)


FAULTS: list[tuple[str, Callable[[Path], object]]] = [
    ("0.npy", cut),
    ("1.npy", saved(np.zeros((30, 4), np.float64))),
    ("1.npy", saved(np.zeros((30, 3), np.float32))),
    ("1.npy", saved(np.zeros(30, np.float32))),
    ("1.npy", saved(np.float32(1))),
    ("1.npy", saved(np.array([{}], object))),
    ("1.npy", lambda path: path.write_bytes(b"PK\x03\x04")),
    ("labels.npy", lambda path: path.write_bytes(path.read_bytes().replace(b"(30, ", b"(3000000000000, ", 1))),
    ("1.npy", lambda path: path.write_bytes(path.read_bytes().replace(b"{", b"(", 1))),
    ("ends.npy", lambda path: path.write_bytes(path.read_bytes().replace(b"False", b"Valse", 1))),
    ("1.npy", Path.unlink),
    ("1.npy", link),
    ("1.npy", other_names),
    ("1.npy", pipe),
    ("labels.npy", saved(np.full((30, 3), 7, np.int32))),
    ("labels.npy", saved(np.full((30, 3), LABELS, np.int32))),
    ("labels.npy", saved(np.full((30, 3), -2, np.int32))),
    ("labels.npy", saved(np.zeros((30, 3)))),
    ("labels.npy", saved(np.zeros(30, np.int32))),
    ("labels.npy", flip),
    ("ends.npy", saved(np.full(30, 9, np.int64))),
    ("ends.npy", saved(np.arange(31))),
    ("ids", flip),
    ("ids", lambda path: path.write_bytes(b"")),
    ("digests.json", lambda path: path.write_text("[" * 100_000)),
    ("digests.json", lambda path: path.write_text("{}")),
]


@pytest.mark.parametrize(("name", "damage"), FAULTS)
def test_a_damaged_cache(name: str, damage: Callable[[Path], object], tmp_path: Path) -> None:
    path, cache = write(tmp_path / "a.tfrecord", 30), tmp_path / "cache"
    load(sources([path]), INPUTS, LABELS, cache=cache)
    (damaged,) = cache.glob(f"*/{name}")
    damage(damaged)
    with pytest.raises(InputError, match="damaged cache"):
        load(sources([path]), INPUTS, LABELS, cache=cache)


def test_a_cache_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, cache = write(tmp_path / "a.tfrecord", 30), tmp_path / "cache"
    load(sources([path]), INPUTS, LABELS, cache=cache)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    with pytest.raises(InputError, match=r"damaged cache: .*belongs to another user"):
        load(sources([path]), INPUTS, LABELS, cache=cache)


def test_a_cache_that_cannot_be_filled_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutputError, match="No space left on device"):
        load(sources([write(tmp_path / "a.tfrecord", 30)]), INPUTS, LABELS, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_more_than_memory_asks_for_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "available_memory", lambda: 1000)
    with pytest.raises(TrainingError, match=r"need 0\.0 GB") as caught:
        load(sources([write(tmp_path / "a.tfrecord", 30)]), INPUTS, LABELS)
    assert caught.value.hints == (Hint.ON_DISK,)


@pytest.mark.parametrize("kind", [Resident, Streamed])
def test_batches_are_the_rows_asked_for(kind: type[Resident | Streamed]) -> None:
    made = videos(10)
    order = [torch.tensor([7, 2]), torch.tensor([0]), torch.tensor([2, 2, 9]), *torch.arange(10).split(1)]
    gathered = list(kind(made, torch.device("cpu")).batches(order))
    assert len(gathered) == len(order)
    for rows, (inputs, labels) in zip(order, gathered, strict=True):
        for index in range(2):
            assert torch.equal(inputs[index], torch.from_numpy(made.features[index][rows.numpy()]))
        assert labels.tolist() == made.labels[rows.numpy()].tolist()


def test_half_precision_on_the_device_is_single_in_a_batch() -> None:
    made = videos(10)
    ((inputs, _),) = Resident(made, torch.device("cpu"), torch.float16).batches([torch.tensor([7, 2])])
    assert inputs[1].dtype == torch.float32
    torch.testing.assert_close(inputs[1], torch.from_numpy(made.features[1][[7, 2]]), rtol=1e-3, atol=1e-3)


def test_streaming_stops_in_the_middle() -> None:
    batches = Streamed(videos(10), torch.device("cpu")).batches(torch.arange(10).split(1))
    next(batches)
    batches.close()
