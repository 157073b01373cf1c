"""Journals, completion records and results of parts with any value in any place: an error of ours, or no difference."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crc32c import crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.errors import DeviceError, InputError, Yt8mError
from scorer.job.part import plan, run_part
from scorer.job.record import CompletionRecord
from scorer.job.result import PartResult
from scorer.job.spec import Job
from tests import shards
from tests.scorer.fakes import FailingModel, FakePredictor, do, files_of, write_shards
from tests.scorer.journals import as_journal, entries

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**31, 2**62, 2**64, 10**30, 0.5, 1e400, float("nan"), "", "x", "\ud800", "a" * 5000])
    | st.integers(-100, 2000),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.sampled_from("abc"), children, max_size=2),
    max_leaves=4,
)
SETTINGS = settings(deadline=None, max_examples=150)


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to every value within `value`."""
    yield way
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(child, (*way, key))


def changed(value: Any, way: tuple[Any, ...], new: Any) -> Any:
    """A copy with `new` in that place."""
    if not way:
        return new
    value = copy.deepcopy(value)
    parent = value
    for key in way[:-1]:
        parent = parent[key]
    parent[way[-1]] = new
    return value


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("damage")
    paths = write_shards(folder / "shards", [9, 14, 7])
    shards.damage_payload(paths[0], 3)
    (folder / "out").mkdir()
    return Job(shards.sources(paths), str(folder / "out" / "preds.csv"), on_error="skip", commit_seconds=0.0)


@pytest.fixture(scope="module")
def whole(job: Job) -> dict[str, bytes]:
    do(job)
    found = files_of(Path(job.output))
    for name in found:
        Path(job.output).with_name(name).unlink()
    return found


@pytest.fixture(scope="module")
def unfinished(job: Job, whole: dict[str, bytes]) -> Path:
    """A folder with what a run left that was broken off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scorer.pipeline.predict.COALESCED_VIDEOS", 1)
        with pytest.raises(DeviceError):
            do(job, FailingModel(2))
    folder = Path(job.output).parent
    return Path(shutil.copytree(folder, folder.with_name("unfinished")))


@given(data=st.data())
@SETTINGS
def test_a_journal(job: Job, whole: dict[str, bytes], unfinished: Path, data: st.DataObject) -> None:
    lines = entries(unfinished / ".preds.csv.journal")
    way = data.draw(st.sampled_from([way for way in places(lines) if way]))
    damaged = changed(lines, way, data.draw(VALUES))
    folder = Path(job.output).parent
    shutil.rmtree(folder)
    shutil.copytree(unfinished, folder)
    (folder / ".preds.csv.journal").write_bytes(as_journal(damaged))
    try:
        do(replace(job, resume_policy="resume"), FakePredictor())
    except Yt8mError:
        return
    assert Path(job.output).read_bytes() == whole["preds.csv"], "a count that nothing else tells may differ, no row"


@given(data=st.data())
@SETTINGS
def test_a_completion_record(whole: dict[str, bytes], data: st.DataObject) -> None:
    value = json.loads(whole["preds.csv.done.json"])
    damaged = changed(value, data.draw(st.sampled_from([*places(value)])), data.draw(VALUES))
    try:
        record = CompletionRecord.from_json(damaged)
    except ValueError:
        return
    assert json.dumps(record.to_json()) == json.dumps(damaged)


@given(data=st.data())
@SETTINGS
def test_a_result_of_a_part(job: Job, data: st.DataObject) -> None:
    line, _, body = run_part(job, plan(job.shards, 1)[0], FakePredictor()).to_bytes().partition(b"\n")
    header = json.loads(line)
    damaged = changed(header, data.draw(st.sampled_from([*places(header)])), data.draw(VALUES))
    whole = json.dumps(damaged, separators=(",", ":")).encode() + b"\n" + body[:-4]
    whole += crc32c(whole).to_bytes(4, "little")
    try:
        result = PartResult.from_bytes(whole)
    except InputError:
        return
    assert result.to_bytes() == whole
