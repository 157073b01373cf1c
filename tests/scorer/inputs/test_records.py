"""What every record format must do, run over TFRecord and over a toy; and that the toy is one file.

A new format is one more writer in `FORMATS`.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer.errors import InputError
from scorer.inputs import readers
from scorer.inputs.batching import batches
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.readers import RecordReaders, decoded_blocks
from scorer.inputs.records import Schema
from scorer.inputs.source import Source
from scorer.job.spec import Job
from tests import shards
from tests.loops import loops  # noqa: F401
from tests.scorer.fakes import INPUTS, do
from tests.scorer.inputs import toy_format

SCHEMA = Schema(INPUTS)
Video = tuple[str, list[int] | None, dict[str, list[float]]]


def tfrecord(videos: Sequence[Video | None]) -> list[bytes]:
    return [shards.frame(b"no example" if video is None else shards.example(*video)) for video in videos]


def frames(videos: Sequence[Video | None]) -> list[bytes]:
    """One frame of floats each, whose mean is itself."""
    return [shards.frame(b"no example" if video is None else one_frame(*video)) for video in videos]


def one_frame(id: str, labels: list[int] | None, features: dict[str, list[float]]) -> bytes:
    names = {"mean_rgb": "RGB/feature/floats", "mean_audio": "AUDIO/feature/floats"}
    lists = {names[name]: np.array([values], np.float32) for name, values in features.items()}
    return shards.sequence_example(id, labels, lists)


def json_lines(videos: Sequence[Video | None]) -> list[bytes]:
    return [b"no JSON\n" if video is None else json_line(*video) for video in videos]


def json_line(id: str, labels: list[int] | None, features: dict[str, list[float]]) -> bytes:
    return json.dumps({"id": id, **({} if labels is None else {"labels": labels}), **features}).encode() + b"\n"


FORMATS: dict[str, Callable[[Sequence[Video | None]], list[bytes]]] = {
    "tfrecord": tfrecord,
    "frames": frames,
    "json lines": json_lines,
}
"""The bytes of each record, one after the other the shard; None is a bad one."""


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """Registering outlasts a test: the others see the built-in formats alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "_registered", [])
        toy_format.register()
        yield


@pytest.fixture(params=FORMATS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def videos(shard: int, count: int) -> list[Video]:
    random = np.random.default_rng(shard)
    return [
        (
            f"{shard}-{row}",
            [row % 30] if row % 3 else None,
            {name: random.normal(size=width).astype(np.float32).tolist() for name, width in INPUTS.items()},
        )
        for row in range(count)
    ]


def write(folder: Path, forms: Sequence[str]) -> list[Source]:
    """Shards of 7, 8, 9 ... videos, each in its form."""
    folder.mkdir()
    for shard, form in enumerate(forms):
        (folder / f"{shard}.shard").write_bytes(b"".join(FORMATS[form](videos(shard, 7 + shard))))
    return shards.sources(str(folder / f"{shard}.shard") for shard in range(len(forms)))


def contents(found: Sequence[Source], start: Position = BEGINNING) -> list[Any]:
    return [
        (batch.ids, [v.tolist() for v in batch.features.values()], batch.label_values.tolist(), batch.labelled)
        for batch in batches(found, SCHEMA, 4, start=start)
    ]


def test_what_is_written_is_read(tmp_path: Path, form: str) -> None:
    (batch,) = batches(write(tmp_path / "x", [form]), SCHEMA, 20)
    splits = batch.label_splits.tolist()
    labels = [batch.label_values[first:last].tolist() for first, last in pairwise(splits)]
    features = [{name: batch.features[name][row].tolist() for name in INPUTS} for row in range(len(batch))]
    expected = [(id.encode(), labels or [], features) for id, labels, features in videos(0, 7)]
    assert list(zip(batch.ids, labels, features, strict=True)) == expected
    assert batch.finished == [(0, 7)]


@pytest.mark.parametrize("among", [[0], [1], [0, 2]])
def test_batches_do_not_depend_on_the_format(tmp_path: Path, form: str, among: list[int]) -> None:
    expected = contents(write(tmp_path / "plain", ["tfrecord"] * 3))
    forms = [form if shard in among else "tfrecord" for shard in range(3)]
    assert contents(write(tmp_path / "mixed", forms)) == expected


def test_reading_resumes_after_every_batch(tmp_path: Path, form: str) -> None:
    found = write(tmp_path / "x", [form] * 3)
    whole = contents(found)
    for number, batch in enumerate(batches(found, SCHEMA, 4), 1):
        assert contents(found, start=batch.end) == whole[number:]


def test_blocks_say_where_each_record_is(tmp_path: Path, form: str) -> None:
    (source,) = write(tmp_path / "x", [form])
    positions = [
        block.position(row) for block in decoded_blocks([(0, source)], SCHEMA, BEGINNING) for row in range(len(block))
    ]
    assert [position.record for position in positions] == list(range(7))
    assert all(0 <= position.offset < source.stat.size for position in positions)
    for position in positions:
        first = next(iter(decoded_blocks([(0, source)], SCHEMA, position)))
        assert first.rows.ids[0] == f"0-{position.record}".encode()


def test_a_bad_record_is_quarantined_with_its_place(tmp_path: Path, form: str) -> None:
    made = videos(0, 7)
    records = FORMATS[form]([*made[:2], None, *made[2:]])
    path = tmp_path / "x"
    path.write_bytes(b"".join(records))
    (batch,) = batches(shards.sources([str(path)]), SCHEMA, 20, on_error="skip")
    assert batch.ids == [id.encode() for id, _, _ in made]
    (bad,) = batch.quarantined
    assert (bad.path, bad.record, bad.offset, bad.bytes_lost) == (str(path), 2, len(records[0]) + len(records[1]), 0)
    assert batch.finished == [(0, 8)]


def test_a_change_is_noticed_at_the_end(tmp_path: Path, form: str) -> None:
    (source,) = write(tmp_path / "x", [form])
    with closing(RecordReaders(SCHEMA).open(source)) as reader:
        reader.check_unchanged()
        Path(source.address).write_bytes(b"x")
        with pytest.raises(InputError, match="changed while it was read"):
            reader.check_unchanged()


def test_shards_share_an_opener(tmp_path: Path, form: str) -> None:
    """One reader after the other, whichever formats lie between."""
    opened = RecordReaders(SCHEMA)
    for source in write(tmp_path / "x", [form, "tfrecord", form]):
        with closing(opened.open(source)) as reader:
            assert len(reader.block(BEGINNING).rows.ids) > 4


def test_a_format_is_sent_to_another_process_by_name(form: str) -> None:
    for known in readers._formats("auto"):
        assert type(pickle.loads(pickle.dumps(known))) is type(known)


def test_a_job_over_another_format(tmp_path: Path, form: str) -> None:
    plain = Job(write(tmp_path / "plain", ["tfrecord"] * 3), str(tmp_path / "plain.csv"))
    other = Job(write(tmp_path / "other", [form] * 3), str(tmp_path / "other.csv"))
    assert do(other).record.metrics == do(plain).record.metrics
    assert Path(other.output).read_bytes() == Path(plain.output).read_bytes()
