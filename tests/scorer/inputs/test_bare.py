"""A file that is one SequenceExample is a shard of one video."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from scorer.inputs import bare
from scorer.inputs.bare import BARE
from scorer.inputs.batching import Batch, batches
from scorer.inputs.records import Level, Schema
from scorer.job.spec import Job
from tests import shards
from tests.scorer.fakes import INPUTS, do
from tests.shards import bytes_feature, entry, sequence_example

FRAMES = {
    "RGB/feature/floats": np.arange(20, dtype=np.float32).reshape(5, 4),
    "AUDIO/feature/floats": np.ones((5, 2), np.float32),
}
PATH = entry("clip/data_path", bytes_feature(b"/tmp/video.mp4"))
PLAIN = sequence_example(None, None, FRAMES, [PATH])


def read(path: Path, content: bytes, level: Level = "auto") -> Batch:
    path.write_bytes(content)
    schema = Schema(INPUTS, level)
    (batch,) = batches(shards.sources([str(path)]), schema, 9, on_error="skip")
    return batch


@pytest.mark.parametrize("level", ["auto", "frame"])
def test_it_is_a_video_called_as_the_file(tmp_path: Path, level: Level) -> None:
    for content in (PLAIN, gzip.compress(PLAIN)):
        batch = read(tmp_path / "cats.features.pb", content, level)
        assert (batch.ids, batch.labelled, batch.finished) == ([b"cats"], False, [(0, 1)])
        assert batch.features["mean_rgb"].tolist() == [[8, 9, 10, 11]]


def test_an_id_of_its_own_goes_first(tmp_path: Path) -> None:
    batch = read(tmp_path / "cats.pb", sequence_example("v", [3], FRAMES))
    assert (batch.ids, batch.label_values.tolist()) == ([b"v"], [3])


def test_what_is_invalid_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bad,) = read(tmp_path / "x", PLAIN[:-9]).quarantined
    assert bad.reason.startswith("not a tf.Example (")
    (bad,) = read(tmp_path / "x", shards.example("v", [1], {})).quarantined
    assert bad.reason.startswith("feature 'mean_rgb' is missing; the record has")
    (bad,) = read(tmp_path / "x", PLAIN, "video").quarantined
    assert bad.reason.startswith("not a TFRecord file")
    monkeypatch.setattr(bare, "MAX_RECORD_BYTES", 100)
    (bad,) = read(tmp_path / "x", PLAIN).quarantined
    assert bad.reason == "a frame-level record of more than 100 bytes"


def test_a_damaged_shard_is_not_taken_for_one() -> None:
    for length in range(21):
        header = shards.frame(bytes(length))[:12]
        for bit in range(96):
            damaged = bytearray(header)
            damaged[bit // 8] ^= 1 << bit % 8
            assert not BARE.recognises(bytes(damaged) + PLAIN)
    assert not BARE.recognises(shards.frame(PLAIN))


def test_a_job_over_some(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{name}.pb") for name in "ab"]
    for path in paths:
        Path(path).write_bytes(PLAIN)
    record = do(Job(shards.sources(paths), str(tmp_path / "preds.csv"))).record
    assert (record.scored, [shard.records for shard in record.shards]) == (2, [1, 1])
    assert [line.split(b",")[0] for line in (tmp_path / "preds.csv").read_bytes().splitlines()[1:]] == [b"a", b"b"]
