"""Parts, wherever they are run and however a job is split, merge to the bytes of one run."""

from __future__ import annotations

import itertools
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.errors import InputError, ModelError, RecordError, ResumeError, UsageError, Yt8mError
from scorer.inputs.source import FileStat, LocalFile, Source
from scorer.job.part import Part, merge, plan, run_part
from scorer.job.result import PartResult
from scorer.job.spec import Job, Stopped
from scorer.model.predictor import Features, Predictions
from scorer.outputs.sink import shard_id
from scorer.system.signals import StopRequest
from tests import shards
from tests.scorer.fakes import FACTS, FakePredictor, do, files_of, write_shards

COUNTS = [9, 1, 14, 0, 7, 3]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Six shards with a damaged record in two, repeated ids, and one shard whose videos have no labels."""
    folder = tmp_path_factory.mktemp("parts")
    paths = write_shards(folder / "shards", COUNTS)
    shards.damage_payload(paths[0], 3)
    shards.damage_length(paths[2], 5)
    Path(paths[1]).write_bytes(Path(paths[5]).read_bytes())
    Path(paths[5]).write_bytes(Path(write_shards(folder / "bare", [4], labelled=False)[0]).read_bytes())
    return Job(shards.sources(paths), str(folder / "preds.csv"), on_error="skip")


@pytest.fixture(scope="module")
def whole(job: Job) -> dict[str, bytes]:
    do(job)
    return files_of(Path(job.output))


def results(job: Job, parts: Sequence[Part], batch_size: int = 8) -> list[PartResult]:
    """Each part, run and sent."""
    found = [run_part(job, part, FakePredictor(batch_size)) for part in parts]
    return [PartResult.from_bytes(result.to_bytes()) for result in found]


def test_a_part_has_the_embeddings_that_its_job_asks_for(job: Job) -> None:
    job = replace(job, embeddings="videos.npy")
    (result,) = results(job, plan(job.shards, 1))
    rows = result.chunk.embeddings
    assert rows is not None
    assert rows.shape == (len(result.chunk), FACTS.embeddings)
    split = [row for part in results(job, plan(job.shards, 4), 3) for row in _rows(part)]
    assert np.array_equal(rows, np.array(split))
    with pytest.raises(InputError, match="a chunk has other embeddings"):
        PartResult.from_bytes(replace(result, options=replace(result.options, embeddings=0)).to_bytes())


def _rows(part: PartResult) -> list[object]:
    return [] if part.chunk.embeddings is None else [*part.chunk.embeddings]


def test_a_model_without_embeddings_is_named(job: Job) -> None:
    job = replace(job, embeddings="videos.npy")
    with pytest.raises(ModelError, match=r"^fake.onnx gives no embeddings; export it with embeddings$"):
        run_part(job, plan(job.shards, 1)[0], FakePredictor(facts=replace(FACTS, embeddings=0)))


def merged(job: Job, parts: Sequence[PartResult]) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "preds.csv"
        record = merge(parts, [*map(shard_id, job.shards)], str(output))
        files = files_of(output)
        assert record.to_json() == json.loads(files["preds.csv.done.json"])
        return files


@given(cuts=st.lists(st.integers(0, len(COUNTS)), max_size=7).map(sorted), batch_size=st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_any_split_merges_to_the_bytes_of_one_run(
    job: Job, whole: dict[str, bytes], cuts: list[int], batch_size: int
) -> None:
    borders = itertools.pairwise([0, *cuts, len(job.shards)])
    digest = plan(job.shards, 1)[0].job
    split = [tuple(job.shards[start:stop]) for start, stop in borders]
    parts = [Part(index, len(split), some, digest) for index, some in enumerate(split)]
    assert merged(job, results(job, parts, batch_size)) == whole


@pytest.mark.parametrize("count", [1, 2, 3, 6, 50])
def test_a_plan_merges_to_the_bytes_of_one_run(job: Job, whole: dict[str, bytes], count: int) -> None:
    assert merged(job, results(job, plan(job.shards, count))) == whole


def fake_sources(sizes: Sequence[int]) -> list[Source]:
    return [LocalFile(f"/s/{index}", FileStat(size, 1), (0, index)) for index, size in enumerate(sizes)]


@given(st.lists(st.integers(0, 10**9), max_size=40), st.integers(1, 12))
def test_a_plan_has_every_shard_once_in_order_and_balanced(sizes: list[int], count: int) -> None:
    found = fake_sources(sizes)
    parts = plan(found, count)
    assert [shard for part in parts for shard in part.shards] == found
    assert [(part.index, part.count) for part in parts] == [(index, count) for index in range(count)]
    assert parts == plan(found, count)
    weights = [sum(shard.stat.size or 1 for shard in part.shards) for part in parts]
    heaviest = max((size or 1 for size in sizes), default=0)
    assert max(weights) <= sum(weights) / count + heaviest
    assert min(weights) >= sum(weights) / count - heaviest


def test_no_parts_are_refused(job: Job) -> None:
    with pytest.raises(UsageError, match="0 parts"):
        plan(job.shards, 0)
    with pytest.raises(InputError, match="no parts"):
        merged(job, [])


def test_parts_that_do_not_belong_together_are_named(job: Job, tmp_path: Path) -> None:
    one, two, three = results(job, plan(job.shards, 3))
    cases: list[tuple[list[PartResult], str]] = [
        ([one, two], "part 3 of 3 is missing"),
        ([one, three, two], "part 3 of 3 comes where part 2 should"),
        ([one, one, two, three], "part 1 of 3 comes where part 2 should"),
        ([two, three], "part 2 of 3 comes where part 1 should"),
        ([one, two, three, three], "part 3 of 3 comes where part 4 should"),
        ([one, replace(two, count=4), three], "part 2 of 4 is of another job"),
        ([one, replace(two, job="other"), three], "part 2 of 3 is of another job"),
        ([replace(one, count=2), replace(two, count=2)], "the parts lack shard 3"),
        ([one, replace(two, shards=one.shards), three], "part 2 of 3 has other shards"),
    ]
    for field, value in (("model_sha256", "e"), ("runtime", "fake 2"), ("provider", "Other"), ("on_error", "fail")):
        changed: dict[str, Any] = {field: value}
        other = replace(two, options=replace(two.options, **changed))
        cases.append(([one, other, three], f"part 2 of 3 was run otherwise: {field} is {value} and was"))
    for parts, says in cases:
        with pytest.raises(InputError, match=says):
            merged(job, parts)


def test_parts_of_a_smaller_job_are_of_another(job: Job) -> None:
    parts = results(job, plan(job.shards[:-1], 2))
    with pytest.raises(InputError, match="of another job"):
        merged(job, parts)


def test_a_merge_that_lacks_a_part_is_resumed(job: Job, whole: dict[str, bytes], tmp_path: Path) -> None:
    parts, output = results(job, plan(job.shards, 4)), tmp_path / "preds.csv"
    ids = [*map(shard_id, job.shards)]
    with pytest.raises(InputError, match=r"part 3 of 4 is missing \(\d+ videos are kept\)"):
        merge(parts[:2], ids, str(output))
    assert not output.exists()
    with pytest.raises(ResumeError, match="an earlier run stopped"):
        merge(parts, ids, str(output))
    merge(parts, ids, str(output), resume_policy="resume")
    assert files_of(output) == whole


def test_a_merge_may_be_resumed_by_a_plain_job(job: Job, whole: dict[str, bytes], tmp_path: Path) -> None:
    output, stop = tmp_path / "preds.csv", StopRequest()
    stop.set()
    with pytest.raises(Stopped) as stopped:
        merge(results(job, plan(job.shards, 3)), [*map(shard_id, job.shards)], str(output), stop=stop)
    report = do(replace(job, output=str(output), resume_policy="resume"))
    assert report.resumed == stopped.value.scored > 0
    assert files_of(output) == whole


def test_a_plain_job_that_stopped_within_a_part_is_not_resumed_by_a_merge(job: Job, tmp_path: Path) -> None:
    class Failing(FakePredictor):
        calls = 0

        def run(self, features: Features, k: int = 10) -> Predictions:
            self.calls += 1
            if self.calls == 2:
                raise Yt8mError("it fell off")
            return super().run(features, k)

    own = replace(job, output=str(tmp_path / "preds.csv"), commit_seconds=0.0)
    with pytest.raises(Yt8mError, match="fell off"):
        do(own, Failing(batch_size=4))
    with pytest.raises(ResumeError, match="stopped within a part"):
        merge(results(job, plan(job.shards, 2)), [*map(shard_id, job.shards)], own.output, resume_policy="resume")


def test_the_limit_on_bad_records_holds_over_all_parts(job: Job, tmp_path: Path) -> None:
    parts = results(job, plan(job.shards, 6))
    with pytest.raises(RecordError, match="2 records are quarantined by now, and 1 may be"):
        merge(parts, [*map(shard_id, job.shards)], str(tmp_path / "preds.csv"), max_errors=1)


def test_a_bad_record_ends_a_part(job: Job) -> None:
    with pytest.raises(Yt8mError, match="fails its CRC32C"):
        run_part(replace(job, on_error="fail"), plan(job.shards, 1)[0], FakePredictor())


def test_another_model_is_not_merged(job: Job) -> None:
    parts = plan(job.shards, 2)
    other = run_part(job, parts[1], FakePredictor(facts=replace(FACTS, sha256="e" * 64)))
    with pytest.raises(InputError, match="model_sha256"):
        merged(job, [run_part(job, parts[0], FakePredictor()), other])


@pytest.mark.parametrize("embeddings", ["", "videos.npy"])
def test_a_damaged_result_is_refused(job: Job, embeddings: str) -> None:
    job = replace(job, embeddings=embeddings)
    data = run_part(job, plan(job.shards, 1)[0], FakePredictor()).to_bytes()
    assert PartResult.from_bytes(data).to_bytes() == data
    chance = random.Random(0)
    for _ in range(200):
        broken = bytearray(data)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        with pytest.raises(InputError, match="run that part again"):
            PartResult.from_bytes(bytes(broken))
    for size in (0, 1, 4, 100, len(data) - 1):
        with pytest.raises(InputError, match="run that part again"):
            PartResult.from_bytes(data[:size])
