"""Frames are averaged as YouTube-8M's video-level release did, fast and through protobuf; what is invalid is named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from scorer.errors import RecordError
from scorer.inputs import frame_reader
from scorer.inputs.batching import Batch, batches
from scorer.inputs.frames import mean_of_frames
from scorer.inputs.protobuf import InvalidExample, Row, parse
from scorer.inputs.records import Level, Schema
from scorer.job.run import score
from scorer.job.spec import Job
from scorer.system.signals import StopRequest
from tests import shards
from tests.loops import loops  # noqa: F401
from tests.scorer.fakes import INPUTS, FakePredictor
from tests.scorer.inputs.test_example import real_shards
from tests.shards import bytes_feature, entry, field, float_feature, frame_list, int64_feature, sequence_example

WIDTHS = {"mean_rgb": 6, "mean_audio": 2}
REAL = {"mean_rgb": 1024, "mean_audio": 128}
Frames = dict[str, NDArray[np.uint8]]


def quantised(count: int, seed: int = 0, widths: dict[str, int] = WIDTHS, audio: int | None = None) -> Frames:
    random = np.random.default_rng(seed)
    counts = {"mean_rgb": count, "mean_audio": count if audio is None else audio}
    return {
        name.removeprefix("mean_"): random.integers(0, 256, (counts[name], width), np.uint8)
        for name, width in widths.items()
    }


def reference(values: NDArray[np.uint8]) -> NDArray[np.float64]:
    return (values.astype(np.float64) * 4 / 255 + 4 / 512 - 2).mean(axis=0)


def read(path: str, level: Level = "auto", widths: dict[str, int] = WIDTHS) -> list[Batch]:
    return list(batches(shards.sources([path]), Schema(widths, level), 50, on_error="skip"))


def read_one(folder: Path, payload: bytes, level: Level = "auto") -> Batch:
    (batch,) = read(shards.write_shard(folder / "x", [payload]), level)
    return batch


def test_means_are_those_of_the_reference(tmp_path: Path) -> None:
    made = [quantised(count, count, REAL) for count in (1, 2, 3, 120, 256, 257, 258, 300, 301, 700)]
    path = shards.write_shard(tmp_path / "x", [sequence_example(f"v{i}", [i], frames) for i, frames in enumerate(made)])
    (batch,) = read(path, widths=REAL)
    assert batch.ids == [f"v{i}".encode() for i in range(len(made))]
    assert batch.label_values.tolist() == list(range(len(made)))
    for name in REAL:
        expected = [reference(frames[name.removeprefix("mean_")]) for frames in made]
        assert np.abs(batch.features[name] - expected).max() < 1e-6
        assert np.array_equal(batch.features[name], np.array(expected, np.float32)), "as float64 gives them, rounded"


def test_sums_do_not_overflow(tmp_path: Path) -> None:
    frames = {"rgb": np.full((3000, 6), 255, np.uint8), "audio": np.zeros((3000, 2), np.uint8)}
    batch = read_one(tmp_path, sequence_example("v", None, frames))
    assert batch.features["mean_rgb"][0].tolist() == [np.float32(2 + 4 / 512)] * 6
    assert batch.features["mean_audio"][0].tolist() == [np.float32(4 / 512 - 2)] * 2
    assert not batch.labelled


def test_floats_are_averaged_as_they_are(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frames = {
        "RGB/feature/floats": random.normal(size=(9, 6)).astype(np.float32),
        "AUDIO/feature/floats": random.normal(size=(9, 2)).astype(np.float32),
    }
    batch = read_one(tmp_path, sequence_example("v", [1], frames))
    for name, values in zip(WIDTHS, frames.values(), strict=True):
        assert np.array_equal(batch.features[name][0], values.astype(np.float64).mean(axis=0).astype(np.float32))


SEGMENTS = [
    entry("segment_start_times", int64_feature([5, 20])),
    entry("segment_end_times", int64_feature([10, 25])),
    entry("segment_labels", int64_feature([3, 4])),
    entry("segment_scores", float_feature([1, 0])),
]
GOOD = quantised(7)
PLAIN = sequence_example("v", [1, 300], GOOD)
ONE, TWO = bytes_feature(b"abcdef"), bytes_feature(b"ab")
ID = field(1, entry("id", bytes_feature(b"v")))
MEANS = [entry("mean_rgb", float_feature([1] * 6)), entry("mean_audio", float_feature([1, 2]))]
NAN = np.full((2, 6), np.nan, np.float32)
ODD_FORMS: dict[str, bytes] = {
    "plain": PLAIN,
    "segments": sequence_example("v", [1], GOOD, SEGMENTS),
    "no labels": sequence_example("v", None, GOOD),
    "empty labels": sequence_example("v", [], GOOD),
    "labels of floats": sequence_example("v", None, GOOD, [entry("labels", float_feature([1]))]),
    "2017": sequence_example(None, [1], GOOD, [entry("video_id", bytes_feature(b"w"))]),
    "no id": sequence_example(None, [1], GOOD),
    "an id of two": sequence_example(None, [1], GOOD, [entry("id", bytes_feature(b"w", b"x"))]),
    "an id of control characters": sequence_example("a\nb", [1], GOOD),
    "a name": sequence_example("é", [1], GOOD),
    "other lists": PLAIN + field(2, frame_list("other", [ONE, float_feature([1])])),
    "another list within": sequence_example("v", [1], {**GOOD, "depth": np.zeros((3, 5), np.float32)}),
    "lists first": b"".join(reversed([ID, PLAIN])),
    "one more of audio": sequence_example("v", [1], quantised(7, audio=8)),
    "two more of audio": sequence_example("v", [1], quantised(7, audio=9)),
    "no frames of audio": sequence_example("v", [1], quantised(7, audio=0)),
    "no frames": sequence_example("v", [1], quantised(0)),
    "no audio": sequence_example("v", [1], {"rgb": GOOD["rgb"]}),
    "another width": sequence_example("v", [1], quantised(7, widths={"mean_rgb": 5, "mean_audio": 2})),
    "a width once": ID
    + field(2, frame_list("rgb", [ONE, ONE, bytes_feature(b"abc")]) + frame_list("audio", [TWO] * 3)),
    "frames in pieces": ID
    + field(2, frame_list("rgb", [bytes_feature(b"abc", b"def")] * 2) + frame_list("audio", [TWO] * 2)),
    "mixed kinds": ID
    + field(2, frame_list("rgb", [ONE, float_feature([1] * 6)]) + frame_list("audio", [TWO] * 2)),
    "integers": ID
    + field(2, frame_list("rgb", [int64_feature([1] * 6)]) + frame_list("audio", [TWO])),
    "floats that are none": sequence_example(
        "v",
        [1],
        {"RGB/feature/floats": NAN, "AUDIO/feature/floats": NAN[:, :2]},
    ),
    "a list twice": PLAIN + field(2, frame_list("rgb", [ONE])),
    "a list without frames": PLAIN + field(2, field(1, field(1, b"rgb"))),
    "a list in pieces": ID
    + field(2, frame_list("audio", [TWO] * 2) + field(1, field(1, b"rgb") + field(2, field(1, ONE)) * 2)),
    "unpacked floats": ID
    + field(
        2,
        frame_list("RGB/feature/floats", [field(2, b"".join(field(1, bytes(4), shards.FIXED32) for _ in range(6)))])
        + frame_list("AUDIO/feature/floats", [float_feature([1, 2])]),
    ),
    "both means": sequence_example("v", [1], GOOD, MEANS),
    "one mean": sequence_example("v", [1], GOOD, MEANS[:1]),
    "video level": shards.example("v", [1], {"mean_rgb": [1] * 6, "mean_audio": [1, 2]}),
    "another message": b"\x08\x01",
    "no message": b"no example",
    "nothing": b"",
    "cut": PLAIN[:-3],
}  # fmt: skip


def parsed(payload: bytes, level: Level = "auto") -> Row | str:
    try:
        return parse(payload, WIDTHS, level)
    except InvalidExample as invalid:
        return str(invalid)


@pytest.mark.parametrize("level", ["auto", "frame", "video"])
@pytest.mark.parametrize("form", ODD_FORMS)
def test_every_form_is_what_protobuf_says(tmp_path: Path, form: str, level: Level) -> None:
    payload = ODD_FORMS[form]
    path = shards.write_shard(tmp_path / "x", [PLAIN, payload])  # the first says what the shard is
    (batch,) = read(path, level)
    expected = parsed(payload, level)
    if isinstance(expected, str):
        assert [bad.reason for bad in batch.quarantined][-1:] == [expected]
        return
    assert len(batch.quarantined) == (level == "video")
    row = len(batch) - 1
    assert batch.ids[row] == expected.id
    labels = [1, 300] if form in WITH_300 else [] if form in WITHOUT else [1]
    assert batch.label_values[batch.label_splits[row] :].tolist() == labels
    for name, values in zip(WIDTHS, expected.floats, strict=True):
        assert np.array_equal(batch.features[name][row], values)


WITHOUT = {
    *("no labels", "empty labels", "labels of floats", "a width once", "frames in pieces", "a list in pieces"),
    "unpacked floats",
}
WITH_300 = {"plain", "other lists", "lists first", "a list twice", "a list without frames"}


def test_random_damage_is_what_protobuf_says(tmp_path: Path) -> None:
    """What is stepped over may be anything; what is read is never something else."""
    random = np.random.default_rng(0)
    for number in range(300):
        damaged = bytearray(PLAIN)
        for at in random.integers(0, len(PLAIN), random.integers(1, 4)):
            damaged[at] = random.integers(256)
        (batch,) = read(shards.write_shard(tmp_path / "x", [PLAIN, bytes(damaged)]))
        expected = parsed(bytes(damaged))
        if isinstance(expected, str):
            continue
        assert batch.ids[-1] == expected.id, number
        for name, values in zip(WIDTHS, expected.floats, strict=True):
            assert np.array_equal(batch.features[name][-1], values), number


REASONS = {
    "two more of audio": "the frames differ in number: 7 of 'rgb', 9 of 'audio'",
    "no frames of audio": "there are no frames in 'audio'",
    "no frames": "there are no frames in 'rgb'",
    "another width": "frame 0 of 'rgb' holds 5 values, the model wants 6",
    "a width once": "frame 2 of 'rgb' holds 3 values, the model wants 6",
    "no audio": "a frame-level record (a SequenceExample of 'rgb'), not a video-level tf.Example",
    "mixed kinds": "the frames of 'rgb' are not all bytes or all floats",
    "floats that are none": "the frames of 'RGB/feature/floats' hold numbers that are not finite",
}


@pytest.mark.parametrize("form", REASONS)
def test_what_is_invalid_is_named(tmp_path: Path, form: str) -> None:
    (bad,) = read_one(tmp_path, ODD_FORMS[form]).quarantined
    assert bad.reason == REASONS[form]


def test_the_level_insists(tmp_path: Path) -> None:
    assert read_one(tmp_path, ODD_FORMS["both means"]).features["mean_rgb"][0].tolist() == [1] * 6
    averaged = read_one(tmp_path, ODD_FORMS["both means"], "frame").features["mean_rgb"][0]
    assert np.array_equal(averaged, reference(GOOD["rgb"]).astype(np.float32))
    (bad,) = read_one(tmp_path, PLAIN, "video").quarantined
    assert bad.reason.startswith("a frame-level record (a SequenceExample of 'audio', 'rgb'), not a video-level")
    (bad,) = read_one(tmp_path, ODD_FORMS["video level"], "frame").quarantined
    assert bad.reason.startswith("no frame-level record: there are not all frames; the record has 'id', 'labels'")


def test_frames_of_one_record_do_not_lend_to_the_next(tmp_path: Path) -> None:
    """Both kinds in one file."""
    forms = ("plain", "video level", "plain", "both means", "plain")
    (batch,) = read(shards.write_shard(tmp_path / "x", [ODD_FORMS[form] for form in forms]))
    assert (batch.features["mean_rgb"] == 1).all(axis=1).tolist() == [False, True, False, True, False]


@pytest.mark.parametrize(("level", "says"), [("auto", 1), ("video", 0), ("frame", 0)])
def test_means_beside_frames_are_used_and_it_is_said(tmp_path: Path, level: Level, says: int) -> None:
    frames = quantised(5, widths=INPUTS)
    means = [entry(name, float_feature([0.5] * width)) for name, width in INPUTS.items()]
    context = [*means, entry("padding", bytes_feature(bytes(5000)))]  # as long as that of real ones
    path = shards.write_shard(tmp_path / "x", [sequence_example("v", [1], frames, context)] * 2)
    lines: list[str] = []
    job = Job(shards.sources([path]), str(tmp_path / "preds.csv"), level=level)
    record = score(job, FakePredictor(), StopRequest(), lambda progress: None, lines.append).record
    assert lines == ["there are frames beside the means of them; the means are scored"] * says
    assert record.options.level == level
    assert record.to_json()["options"].get("level", "auto") == level
    assert type(record).from_json(record.to_json()) == record


def test_another_level_is_another_job(tmp_path: Path) -> None:
    path = shards.write_shard(tmp_path / "x", [sequence_example("v", [1], quantised(5, widths=INPUTS))])
    job = Job(shards.sources([path]), str(tmp_path / "preds.csv"), level="frame")
    with pytest.raises(RecordError):
        score(replace(job, level="video"), FakePredictor(), StopRequest(), lambda progress: None)
    assert score(job, FakePredictor(), StopRequest(), lambda progress: None).record.scored == 1


def test_long_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = quantised(2500, widths=REAL)
    payload = sequence_example("long", [1], long)
    assert len(payload) > 2 << 20
    path = shards.write_shard(tmp_path / "x", [payload, sequence_example("v", [1], quantised(5, widths=REAL)), payload])
    found = read(path, widths=REAL)
    assert [id for batch in found for id in batch.ids] == [b"long", b"v", b"long"]
    assert np.array_equal(found[0].features["mean_rgb"][0], reference(long["rgb"]).astype(np.float32))
    monkeypatch.setattr(frame_reader, "MAX_RECORD_BYTES", 1 << 20)
    assert [bad.reason for batch in read(path, widths=REAL) for bad in batch.quarantined] == [
        "a frame-level record of more than 1,048,576 bytes"
    ] * 2


def test_more_records_than_a_block_has_rows(tmp_path: Path) -> None:
    """Records of one frame are smaller than their means."""
    made = [sequence_example(f"v{i}", [1], quantised(1, i, REAL)) for i in range(1500)]
    found = read(shards.write_shard(tmp_path / "x", made), widths=REAL)
    assert [id for batch in found for id in batch.ids] == [f"v{i}".encode() for i in range(1500)]


def test_bad_bytes_of_a_frame_level_shard(tmp_path: Path) -> None:
    path = shards.write_shard(tmp_path / "x", [PLAIN] * 5)
    shards.damage_payload(path, 2)
    (batch,) = read(path)
    assert [(bad.record, bad.reason) for bad in batch.quarantined] == [(2, "the payload fails its CRC32C")]
    assert len(batch) == 4


def test_sums_take_any_buffer() -> None:
    frames = frame_list("rgb", [bytes_feature(bytes([i] * 6)) for i in range(9)])
    start = frames.index(b"\n\n\n\x08\n\x06")
    to = np.empty(6, np.float32)
    view = memoryview(bytearray(frames))[start:]
    assert mean_of_frames(view, to) == 9
    assert np.array_equal(to, reference(np.full((1, 6), 4, np.uint8)).astype(np.float32))
    assert mean_of_frames(view, to, 2, 4) == 9
    assert np.array_equal(to, (np.array([2.5] * 6) * 4 / 255 + 4 / 512 - 2).astype(np.float32))
    assert mean_of_frames(view[:-1], to) == -1
    assert mean_of_frames(view[:0], to) == 0


def test_real_frame_level_shards() -> None:
    """Theirs have means of other floats beside the frames."""
    for path in real_shards("frame-level/*.tfrecord"):
        means, frames = read(str(path), widths=REAL), read(str(path), "frame", widths=REAL)
        difference = means[0].features["mean_rgb"] - frames[0].features["mean_rgb"]
        assert -0.01 < np.median(difference) < -0.005
        assert means[0].ids == frames[0].ids


def sums_of(mean: NDArray[np.float32], count: int) -> NDArray[np.int64] | None:
    """The sums of `count` frames of bytes whose mean this is; None where there are none."""
    exact = (mean.astype(np.float64) + 2 - 4 / 512) * 255 / 4 * count
    sums = np.rint(exact)
    return sums.astype(np.int64) if np.abs(exact - sums).max() < 0.02 else None


def frames_of(rgb: NDArray[np.float32], audio: NDArray[np.float32]) -> Frames:
    """Frames of these means, exactly; audio may have one more or less."""
    for count in range(1, 302):
        if (first := sums_of(rgb, count)) is None:
            continue
        for other in (count, count - 1, count + 1):
            if other and (second := sums_of(audio, other)) is not None:
                return {"rgb": spread(first, count), "audio": spread(second, other)}
    raise AssertionError("no mean of quantised frames")


def spread(sums: NDArray[np.int64], count: int) -> NDArray[np.uint8]:
    return (sums // count + (np.arange(count)[:, None] < sums % count)).astype(np.uint8)


def test_frames_made_of_real_means_give_the_same_labels(tmp_path: Path) -> None:
    from scorer.api import Scorer

    (path, *_) = real_shards("yt8m/*.tfrecord")
    (batch, *_) = batches(shards.sources([str(path)]), Schema(REAL), 100)
    pairs = zip(*batch.features.values(), strict=True)
    made = [sequence_example(id, None, frames_of(*both)) for id, both in zip(batch.ids, pairs, strict=True)]
    frames = shards.write_shard(tmp_path / "frames.tfrecord", made)
    (averaged, *_) = batches(shards.sources([frames]), Schema(REAL), 100)
    for name in REAL:
        assert np.abs(averaged.features[name] - batch.features[name]).max() < 1e-6
    with Scorer() as scorer:
        expected = list(scorer.predict(str(path)))[: len(made)]
        found = list(scorer.predict(frames))
    assert [(video.id, video.labels) for video in found] == [(video.id, video.labels) for video in expected]
