"""Shards to arrays: what is read, what is refused and where it says so, and how some are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scorer.errors import InputError, RecordError, TrainingError
from tests.shards import example, starts, write_shard
from tests.train.shards import INPUTS, LABELS, videos, write
from train.data import Resident, hold_out, load, padded, statistics


def test_what_is_written_is_read(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{seed}.tfrecord", 30, seed) for seed in (0, 1)]
    read = load(paths, INPUTS, LABELS)
    for index in range(2):
        expected = np.concatenate([videos(30, seed).features[index] for seed in (0, 1)])
        assert np.array_equal(read.features[index], expected)
    assert np.array_equal(read.labels, np.concatenate([videos(30, seed).labels for seed in (0, 1)]))
    assert read.ids == [f"v{seed}-{row}".encode() for seed in (0, 1) for row in range(30)]
    assert load(paths[:1], INPUTS[:1], LABELS).features[0].shape == (30, 8)


def test_the_fingerprint_tells_videos_apart() -> None:
    assert videos(30).fingerprint() == videos(30).fingerprint() != videos(30, seed=1).fingerprint()


def test_labels_are_distinct_ascending_and_padded() -> None:
    matrix = padded(np.array([7, 3, 7, 5]), np.array([3, 0, 1]), 10)
    assert matrix.tolist() == [[3, 7], [-1, -1], [5, -1]]
    assert padded(np.zeros(0, np.int64), np.zeros(2, np.int64), 10).tolist() == [[-1], [-1]]


@pytest.mark.parametrize("label", [LABELS, -1])
def test_a_label_outside_the_range_is_named_with_its_place(label: int, tmp_path: Path) -> None:
    features = {name: [0.0] * width for name, width in INPUTS}
    records = [example(f"v{row}", [label if row == 2 else 1], features) for row in range(4)]
    path = write_shard(tmp_path / "bad.tfrecord", records)
    with pytest.raises(RecordError, match=rf"label {label} is outside 0..{LABELS - 1}") as caught:
        load([write(tmp_path / "good.tfrecord", 3), path], INPUTS, LABELS)
    assert (caught.value.path, caught.value.record, caught.value.offset) == (path, 2, starts(path)[2])


def test_a_shard_without_labels_is_named(tmp_path: Path) -> None:
    features = {name: [0.0] * width for name, width in INPUTS}
    path = write_shard(tmp_path / "test.tfrecord", [example("v", None, features)])
    with pytest.raises(TrainingError, match=r"test\.tfrecord: its videos have no labels"):
        load([write(tmp_path / "good.tfrecord", 3), path], INPUTS, LABELS)


def test_an_absent_shard(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load([str(tmp_path / "absent.tfrecord")], INPUTS, LABELS)


def test_the_held_out_depend_on_their_ids_alone() -> None:
    small, large = hold_out(videos(200)), hold_out(videos(400))
    assert set(small[1].ids) == set(large[1].ids) & set(videos(200).ids)
    assert len(small[0]) + len(small[1]) == 200
    assert 5 <= len(small[1]) <= 40


def test_too_few_to_hold_some_out() -> None:
    with pytest.raises(TrainingError, match="too few"):
        hold_out(videos(2))


def test_statistics() -> None:
    made = videos(50)
    made.features[1][:, 0] = 3
    (mean, std), (_, constant) = statistics(made)
    torch.testing.assert_close(mean, torch.from_numpy(made.features[0]).mean(0))
    torch.testing.assert_close(std, torch.from_numpy(made.features[0]).std(0, correction=0))
    assert constant[0] == 1


def test_gathered_rows() -> None:
    made = videos(10)
    for dtype in (torch.float32, torch.float16):
        inputs, labels = Resident(made, torch.device("cpu"), dtype).gather(torch.tensor([7, 2]))
        torch.testing.assert_close(inputs[1], torch.from_numpy(made.features[1][[7, 2]]), rtol=1e-3, atol=1e-3)
        assert inputs[0].dtype == torch.float32
        assert labels.tolist() == made.labels[[7, 2]].tolist()
