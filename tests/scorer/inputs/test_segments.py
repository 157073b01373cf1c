"""Each labelled segment is a row of its own frames, and reading resumes between any two."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from scorer.inputs.batching import Batch, batches
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.records import Schema
from scorer.job.spec import Job
from tests import shards
from tests.loops import loops  # noqa: F401
from tests.scorer.fakes import INPUTS, do
from tests.scorer.inputs.test_frames import quantised, reference
from tests.shards import entry, float_feature, int64_feature, sequence_example

SCHEMA = Schema(INPUTS, "segment")
Judgement = tuple[int, int, float]


def video(number: int, judged: list[Judgement], frames: int = 40) -> bytes:
    context = [
        entry("segment_start_times", int64_feature([start for start, _, _ in judged])),
        entry("segment_end_times", int64_feature([start + 5 for start, _, _ in judged])),
        entry("segment_labels", int64_feature([label for _, label, _ in judged])),
        entry("segment_scores", float_feature([score for _, _, score in judged])),
    ]
    return sequence_example(f"v{number}", [9], quantised(frames, number, INPUTS), context if judged else [])


MANY: list[list[Judgement]] = [
    [(5, 3, 1), (20, 300, 1), (5, 4, 0), (20, 5, 1)],
    [],
    [(0, 1, 0)],
    [],
    [],
    [(start, start % 7, 1) for start in range(0, 40, 5)],
    [(36, 2, 1)],
    [],
]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return shards.write_shard(tmp_path / "x", [video(number, judged) for number, judged in enumerate(MANY)])


def read(path: str, start: Position = BEGINNING, size: int = 3) -> list[Batch]:
    return list(batches(shards.sources([path]), SCHEMA, size, start=start, on_error="skip"))


def contents(found: list[Batch]) -> list[tuple[bytes, list[float], list[int]]]:
    rows = []
    for batch in found:
        for row, id in enumerate(batch.ids):
            first, last = batch.label_splits[row : row + 2]
            rows.append((id, batch.features["mean_rgb"][row].tolist(), batch.label_values[first:last].tolist()))
    return rows


def test_rows_are_segments(path: str) -> None:
    found = contents(read(path))
    assert [id.decode() for id, _, _ in found] == [
        *("v0:5", "v0:20", "v2:0"),
        *(f"v5:{start}" for start in range(0, 40, 5)),
        "v6:36",
    ]
    assert [labels for _, _, labels in found[:3]] == [[3], [300, 5], []]
    for id, values, _ in found:
        number, start = map(int, id.decode().removeprefix("v").split(":"))
        frames = quantised(40, number, INPUTS)["rgb"][start : start + 5]
        assert values == reference(frames).astype(np.float32).tolist()


def test_without_being_asked_they_are_stepped_over(path: str) -> None:
    """And not taken for means of the frames."""
    found = [*batches(shards.sources([path]), Schema(INPUTS), 50)]
    assert [batch.ids for batch in found] == [[f"v{number}".encode() for number in range(len(MANY))]]
    assert not found[0].unread_frames


def test_reading_resumes_after_every_batch(path: str) -> None:
    for size in (1, 2, 3, 5):
        found = read(path, size=size)
        whole = contents(found)
        done = 0
        for batch in found:
            done += len(batch)
            if batch.end.shard == 0:
                assert batch.end.record == done
                assert contents(read(path, batch.end)) == whole[done:]
        assert sum(records for batch in found for _, records in batch.finished) == len(whole) == 12


def test_more_segments_than_a_block_has_rows(tmp_path: Path) -> None:
    wide = {"mean_rgb": 1024, "mean_audio": 128}
    starts = range(700)
    context = [
        entry("segment_start_times", int64_feature(starts)),
        entry("segment_labels", int64_feature([1] * len(starts))),
    ]
    path = shards.write_shard(tmp_path / "x", [sequence_example("v", [1], quantised(702, 0, wide), context)] * 2)
    found = [batch.ids for batch in batches(shards.sources([path]), Schema(wide, "segment"), 64)]
    assert [id for ids in found for id in ids] == [f"v:{start}".encode() for start in starts] * 2


BAD = {
    "a segment from frame 40 on, of 40": video(0, [(40, 1, 1)]),
    "a segment from frame -1 to 4": video(0, [(-1, 1, 1)]),
    "the segments' starts, ends, labels and scores differ in number": sequence_example(
        "v",
        [1],
        quantised(9, 0, INPUTS),
        [entry(f"segment_{name}", int64_feature([1])) for name in ("start_times",)]
        + [entry("segment_labels", int64_feature([1, 2]))],
    ),
    "'segment_start_times' is no list of integers": sequence_example(
        "v", [1], quantised(9, 0, INPUTS), [entry("segment_start_times", float_feature([1]))]
    ),
    "no frame-level record: there are not all frames": shards.example("v", [1], {}),
    "not a tf.Example": b"no example",
}


@pytest.mark.parametrize("reason", BAD)
def test_what_is_invalid_is_named(tmp_path: Path, reason: str) -> None:
    path = shards.write_shard(tmp_path / "x", [BAD[reason], video(1, [(5, 3, 1)])])
    found = read(path)
    (bad,) = [bad for batch in found for bad in batch.quarantined]
    assert bad.reason.startswith(reason)
    assert [id for batch in found for id in batch.ids] == [b"v1:5"]
    assert sum(records for batch in found for _, records in batch.finished) == 2


@pytest.mark.parametrize("damage", ["payload", "length"])
def test_damage(tmp_path: Path, damage: str) -> None:
    path = shards.write_shard(tmp_path / "x", [video(number, [(5, 3, 1), (9, 1, 1)]) for number in range(4)])
    starts = shards.starts(path)
    shards.flip_bit(path, starts[2] + (40 if damage == "payload" else 3))
    found = read(path)
    (bad,) = [bad for batch in found for bad in batch.quarantined]
    assert bad.offset == starts[2]
    ids = [id for batch in found for id in batch.ids]
    assert ids == [b"v0:5", b"v0:9", b"v1:5", b"v1:9", *([b"v3:5", b"v3:9"] if damage == "payload" else [])]


def test_a_job_over_segments(path: str, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(Path(path).read_bytes()))
    job = Job(shards.sources([path]), str(tmp_path / "a.csv"), level="segment")
    record = do(job).record
    assert (record.scored, record.quarantined, record.shards[0].records) == (12, 0, 12)
    assert record.to_json()["options"]["level"] == "segment"
    do(Job(shards.sources([str(packed)]), str(tmp_path / "b.csv"), level="segment"))
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert b'\n"v0:5",' in (tmp_path / "a.csv").read_bytes()
