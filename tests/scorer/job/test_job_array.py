"""Part files, however they came about, merge to the bytes of one run."""

from __future__ import annotations

import json
import os
import random
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scorer.cli.score import _size_begun
from scorer.errors import InputError, OutputError, RecordError, ResumeError, UsageError, Yt8mError
from scorer.job import part_file
from scorer.job.job_array import PartReport, found_parts, merge_files, own_part_path, score_part
from scorer.job.part import plan
from scorer.job.part_file import PartFile, begun_part, part_path
from scorer.job.spec import Job, Progress, Stopped
from scorer.model.predictor import Features, Predictions
from scorer.system.signals import StopRequest
from tests import shards
from tests.scorer.fakes import FACTS, LABELS, FakePredictor, do, files_of, write_shards
from tests.scorer.job.frames import frames_of, written

COUNTS = [30, 1, 24, 2, 17, 13]
pytestmark = pytest.mark.usefixtures("each_batch_on_its_own")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Six shards with damaged records in two, and one whose videos have no labels; committed after each chunk."""
    paths = write_shards(tmp_path / "shards", COUNTS)
    shards.damage_payload(paths[0], 3)
    shards.damage_length(paths[2], 5)
    Path(paths[5]).write_bytes(Path(write_shards(tmp_path / "bare", [4], labelled=False)[0]).read_bytes())
    (tmp_path / "out").mkdir()
    output = str(tmp_path / "out" / "preds.csv")
    return Job(shards.sources(paths), output, on_error="skip", commit_seconds=0.0)


@pytest.fixture
def whole(job: Job, tmp_path: Path) -> dict[str, bytes]:
    (tmp_path / "whole").mkdir()
    output = tmp_path / "whole" / "preds.csv"
    do(replace(job, output=str(output)))
    return files_of(output)


def run(job: Job, index: int, count: int, predictor: FakePredictor | None = None, after: int = 1000) -> PartReport:
    """Part `index` of `count`, told to stop after so many chunks."""
    stop, seen = StopRequest(), list[int]()

    def watch(progress: Progress) -> None:
        seen.append(progress.scored)
        if len(seen) >= after:
            stop.set()

    fresh = replace(job, shards=shards.sources(shard.address for shard in job.shards))
    part = plan(fresh.shards, count)[index]
    return score_part(fresh, part, predictor or FakePredictor(), stop, watch)


def run_all(job: Job, count: int) -> list[str]:
    return [run(job, index, count).path for index in range(count)]


def merged(paths: Sequence[str], job: Job, **how: Any) -> dict[str, bytes]:
    merge_files(found_parts(paths), job.output, **how)
    output = Path(job.output)
    return {name: data for name, data in files_of(output).items() if ".part-" not in name}


@pytest.mark.parametrize("count", [1, 2, 4, 12])
def test_part_files_merge_to_the_bytes_of_one_run(job: Job, whole: dict[str, bytes], count: int) -> None:
    paths = run_all(job, count)
    assert os.path.basename(paths[0]) == f"preds.csv.part-{'0' * (count > 9)}1-of-{count}"
    random.Random(0).shuffle(paths)
    assert merged(paths, job) == whole


def test_a_part_stopped_anywhere_is_resumed(job: Job, whole: dict[str, bytes]) -> None:
    for after in range(1, 12):
        with pytest.raises(Stopped):
            run(job, 0, 2, FakePredictor(2), after=1)
        with pytest.raises(ResumeError, match="an earlier run stopped"):
            run(job, 0, 2)
        resumed = replace(job, resume_policy="resume")
        try:
            run(resumed, 0, 2, FakePredictor(2), after=after)
        except Stopped:
            assert run(resumed, 0, 2, FakePredictor(3)).resumed > 0
        path = run(resumed, 1, 2).path
        assert merged([path, part_path(job.output, 0, 2)], job) == whole


def test_a_part_cut_off_at_any_byte_is_resumed(job: Job, whole: dict[str, bytes], tmp_path: Path) -> None:
    other = run(job, 1, 2).path
    partial = Path(job.output).with_name(".preds.csv.part-1-of-2.partial")
    with pytest.raises(Stopped):
        run(job, 0, 2, FakePredictor(2), after=6)
    data = partial.read_bytes()
    chance = random.Random(0)
    for size in [0, 1, 17, 18, len(data), *chance.sample(range(len(data)), 25)]:
        partial.write_bytes(data[:size] + chance.randbytes(chance.randrange(40)))
        path = run(replace(job, resume_policy="resume"), 0, 2).path
        assert merged([path, other], job) == whole
        assert not partial.exists()


def test_a_finished_part_that_was_not_renamed_is_renamed(job: Job, whole: dict[str, bytes]) -> None:
    one, two = run_all(job, 2)
    partial = Path(job.output).with_name(".preds.csv.part-1-of-2.partial")
    os.rename(one, partial)

    class Idle(FakePredictor):
        def run(self, features: Features, k: int = 10) -> Predictions:
            raise AssertionError("it was scored already")

    run(replace(job, resume_policy="resume"), 0, 2, Idle())
    assert merged([one, two], job) == whole


@pytest.mark.parametrize("end", [b"", b"\0" * 8])
def test_a_finished_part_whose_end_is_torn_gets_it_again(job: Job, whole: dict[str, bytes], end: bytes) -> None:
    """As a full disk or a loss of power leaves it: the last frame is there, and what says where it begins is not."""
    one, two = run_all(job, 2)
    content = Path(one).read_bytes()
    os.unlink(one)
    Path(job.output).with_name(".preds.csv.part-1-of-2.partial").write_bytes(content[:-8] + end)
    run(replace(job, resume_policy="resume"), 0, 2)
    assert Path(one).read_bytes() == content
    assert merged([one, two], job) == whole


def test_a_part_may_be_run_again(job: Job, whole: dict[str, bytes]) -> None:
    paths = run_all(job, 3)
    run(job, 1, 3, FakePredictor(3))
    assert merged(paths, job) == whole


def test_a_shard_repaired_within_an_unfinished_part_is_scored_again(job: Job, tmp_path: Path) -> None:
    strict = replace(job, on_error="fail")
    with pytest.raises(Yt8mError, match=r"fails its CRC32C.* \(\d+ videos are kept\)"):
        run(strict, 0, 2, FakePredictor(2))
    for shard, good in zip(job.shards[:5], write_shards(tmp_path / "good", COUNTS), strict=False):
        Path(shard.address).write_bytes(Path(good).read_bytes())
    (tmp_path / "whole").mkdir()
    do(replace(strict, output=str(tmp_path / "whole" / "preds.csv")))
    again = replace(strict, resume_policy="resume")
    paths = [run(again, index, 2).path for index in range(2)]
    assert merged(paths, job) == files_of(tmp_path / "whole" / "preds.csv")


def test_a_finished_shard_that_changed_is_refused(job: Job) -> None:
    with pytest.raises(Stopped):
        run(job, 0, 1, after=5)
    os.utime(job.shards[0].address, ns=(1, 1))
    with pytest.raises(ResumeError, match="changed since it was scored"):
        run(replace(job, resume_policy="resume"), 0, 1)


def test_a_new_part_file_is_in_its_folder_for_good_before_it_counts(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of power may else take a file whose bytes were all flushed."""
    seen: list[str] = []
    monkeypatch.setattr(part_file, "sync_folder", lambda folder: seen.append(f"{folder.name}: {entries(folder)}"))

    def entries(folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    with pytest.raises(Stopped):
        run(job, 0, 1, after=1)
    assert seen == ["out: ['.preds.csv.part-1-of-1.lock', '.preds.csv.part-1-of-1.partial']"]


def test_another_model_does_not_resume_a_part(job: Job) -> None:
    with pytest.raises(Stopped):
        run(job, 0, 1, after=2)
    with pytest.raises(ResumeError, match=f"model_sha256 is {'e' * 64} and was {'f' * 64}; restore"):
        run(replace(job, resume_policy="resume"), 0, 1, FakePredictor(facts=replace(FACTS, sha256="e" * 64)))


def test_what_an_unfinished_part_was_begun_with(job: Job) -> None:
    one, path = (own_part_path(job, part) for part in plan(job.shards, 2))
    assert begun_part([one, path]) is None
    with pytest.raises(Stopped):
        run(job, 1, 2, after=2)
    run(job, 0, 2)
    for places, name in ([path], "part 2 of 2"), ([one, path], "part 2 of 2"), ([one], "part 1 of 2"):
        begun = begun_part(places)
        assert begun is not None
        assert (begun.name, begun.options.runtime) == (name, "fake 1")
    partial = Path(path).with_name(f".{Path(path).name}.partial")
    partial.write_bytes(partial.read_bytes()[:60])
    assert begun_part([path]) is None
    assert begun_part(["/dev/null"]) is None


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_a_cluster_resumes_parts_with_the_size_of_batches_that_they_have(job: Job, finished: int) -> None:
    """Or what it finished would be made again, and what it began be refused."""
    on_gpu = FakePredictor(2, facts=replace(FACTS, runtime="onnxruntime 1.31.1 on NVIDIA H100, batches of 2,048"))
    for index in range(finished):
        run(job, index, 3, on_gpu)
    with pytest.raises(Stopped):
        run(job, finished, 3, on_gpu, after=2)
    assert _size_begun(Namespace(part=None, ray_parts=3, output=job.output)) == 2048
    Path(job.output).with_name(f".preds.csv.part-{finished + 1}-of-3.partial").unlink()
    found = _size_begun(Namespace(part=None, ray_parts=3, output=job.output))
    assert found == (2048 if finished else None)


def test_what_is_wrong_with_the_parts_is_named(job: Job, tmp_path: Path) -> None:
    parts = run_all(job, 4)
    others = run_all(replace(job, output=f"{job.output}2"), 3)
    with pytest.raises(InputError, match="parts 2-3 of 4 are missing"):
        merged([parts[3], parts[0]], job)
    with pytest.raises(InputError, match="part 4 of 4 is missing"):
        merged(parts[:3], job)
    with pytest.raises(InputError, match=r"preds.csv2.part-1-of-3 does not belong to .*it is part 1 of 3, and that"):
        merged([*parts, others[0]], job)
    with pytest.raises(InputError, match="are the same part"):
        merged([*parts, parts[2]], job)
    with pytest.raises(InputError, match="there are no parts"):
        merged([], job)
    with pytest.raises(InputError, match="No such file"):
        merged([*parts, "absent"], job)
    with pytest.raises(InputError, match="is no part, or a damaged one"):
        merged([*parts, job.shards[0].address], job)
    run(job, 1, 4, FakePredictor(facts=replace(FACTS, runtime="fake 2")))
    with pytest.raises(InputError, match=r"part-2-of-4 does not belong to .*: runtime is fake 2 and was fake 1"):
        merged(parts, job)
    run(replace(job, shards=job.shards[1:]), 1, 4)
    with pytest.raises(InputError, match="it is of other shards"):
        merged(parts, job)
    assert not os.path.exists(job.output)


def test_shards_that_moved_between_parts_are_noticed(job: Job, tmp_path: Path) -> None:
    parts = run_all(job, 2)
    Path(job.shards[0].address).write_bytes(Path(write_shards(tmp_path / "long", [90])[0]).read_bytes())
    run(job, 0, 2)
    with pytest.raises(InputError, match="not those of one plan"):
        merged(parts, job)


def test_damage_is_never_merged(job: Job, whole: dict[str, bytes]) -> None:
    parts = run_all(job, 2)
    data = Path(parts[1]).read_bytes()
    chance = random.Random(0)
    for _ in range(60):
        broken = bytearray(data)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        Path(parts[1]).write_bytes(broken)
        with pytest.raises(InputError, match=r"damaged|not belong|missing|one plan|same part"):
            merged(parts, job, resume_policy="restart")
    for size in (0, 5, 30, len(data) // 2, len(data) - 1):
        Path(parts[1]).write_bytes(data[:size])
        with pytest.raises(InputError, match="is no part"):
            PartFile.read(parts[1])
    Path(parts[1]).write_bytes(data)
    assert merged(parts, job, resume_policy="restart") == whole


FORGED: dict[str, Callable[[dict[str, Any]], object]] = {
    "more shards than there are": lambda header: header["end"].__setitem__(0, 9),
    "another record": lambda header: header["end"].__setitem__(1, 3),
    "a shard too many": lambda header: header["finished"].append([9, 1]),
    "another count": lambda header: header["finished"].__setitem__(0, [0, 31]),
    "fewer videos": lambda header: header["sizes"].__setitem__(0, 0),
    "more metric records": lambda header: header["sizes"].__setitem__(3, header["sizes"][3] + 54),
    "a count that is none": lambda header: header["end"].__setitem__(0, None),
}


@pytest.mark.parametrize("name", FORGED)
def test_chunks_that_count_otherwise_are_refused(job: Job, name: str) -> None:
    """Whatever their checksums say: they would be counts that do not add up in the output's record."""
    (path,) = run_all(job, 1)
    first, frames = frames_of(Path(path).read_bytes())
    index = next(i for i, (kind, payload) in enumerate(frames) if kind == b"C" and b'"finished":[[0' in payload)
    line, _, arrays = frames[index][1].partition(b"\n")
    header = json.loads(line)
    FORGED[name](header)
    frames[index] = b"C", json.dumps(header).encode() + b"\n" + arrays
    Path(path).write_bytes(written(first, frames))
    with pytest.raises(InputError, match=r"part-1-of-1 is damaged \("):
        merged([path], job)


@pytest.mark.parametrize(("place", "data"), [(0, b"\0\0\0\0"), (4, b"\xff\xff\xff\xff"), (44, b"\7")])
def test_metric_records_that_are_none_are_refused(job: Job, place: int, data: bytes) -> None:
    """Positives, a score, a hit."""
    (path,) = run_all(job, 1)
    first, frames = frames_of(Path(path).read_bytes())
    line, _, arrays = frames[1][1].partition(b"\n")
    videos, k, ids, metrics, _ = json.loads(line)["sizes"]
    assert metrics == 54 * videos
    at = 4 * videos + 8 * videos * k + ids + place
    frames[1] = b"C", line + b"\n" + arrays[:at] + data + arrays[at + len(data) :]
    Path(path).write_bytes(written(first, frames))
    with pytest.raises(InputError, match=r"is damaged \(no such metric records\)"):
        merged([path], job)


def test_an_end_that_counts_otherwise_is_refused(job: Job) -> None:
    (path,) = run_all(job, 1)
    first, frames = frames_of(Path(path).read_bytes())
    end = json.loads(frames[-1][1])
    frames[-1] = b"E", json.dumps({**end, "scored": end["scored"] + 1}).encode()
    Path(path).write_bytes(written(first, frames))
    with pytest.raises(InputError, match="frames are missing"):
        merged([path], job)


def test_labels_that_no_name_belongs_to_are_refused(job: Job) -> None:
    named = replace(job, names=[f"n{label}" for label in range(LABELS)], output=job.output.replace("csv", "jsonl"))
    (path,) = run_all(replace(named, row_format="jsonl"), 1)
    data = Path(path).read_bytes()
    first, frames = frames_of(data)
    facts = json.loads(frames[0][1])
    facts["names"] = facts["names"][:5]
    frames[0] = b"P", json.dumps(facts).encode()
    Path(path).write_bytes(written(first, frames))
    with pytest.raises(InputError, match="a chunk has other labels"):
        list(PartFile.read(path).chunks())


def test_a_stopped_merge_is_resumed_within_a_part(job: Job, whole: dict[str, bytes]) -> None:
    parts, stop = [run(job, index, 2, FakePredictor(2)).path for index in range(2)], StopRequest()
    stop.set()
    with pytest.raises(Stopped) as stopped:
        merged(parts, job, stop=stop)
    assert stopped.value.scored > 0
    assert merged(parts, job, resume_policy="resume") == whole


def test_the_limit_on_bad_records_holds_for_a_part_and_for_all(job: Job) -> None:
    with pytest.raises(RecordError, match="2 records are quarantined by now"):
        run(replace(job, max_errors=1), 0, 1)
    parts = [run(replace(job, max_errors=1, resume_policy="restart"), index, 6).path for index in range(6)]
    with pytest.raises(RecordError, match="2 records are quarantined by now"):
        merged(parts, job, max_errors=1)


def test_a_part_needs_a_file(job: Job) -> None:
    with pytest.raises(OutputError, match="is no file"):
        run(replace(job, output="-"), 0, 1)
    with pytest.raises(UsageError):
        run(job, 0, 0)
