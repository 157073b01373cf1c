"""`score --ray` on three nodes of this machine, of which nodes, workers and the command itself are killed.

The long form of the kills is `python -m tests.scorer.job.cluster_crash --kills 50`.
"""

from __future__ import annotations

import importlib.util
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from scorer.errors import BusyError, DeviceError, Hint, ModelError, ResumeError
from scorer.job.cluster import _kept, _score, score_on_cluster, score_parts_on_cluster
from scorer.job.job_array import found_parts, merge_files, score_part
from scorer.job.part import Part, plan
from scorer.job.spec import Job, Stopped
from scorer.job.workers import Cluster
from scorer.model.predictor import DEFAULT_K, Features, Predictions, Predictor
from scorer.system.signals import StopRequest
from tests import onnx_models, shards
from tests.scorer.fakes import FACTS, INPUTS, LABELS, FakePredictor, do, files_of, write_shards
from tests.scorer.job.cluster_crash import QUARANTINED, Nodes, crash, nodes, prepare, same, start
from tests.scorer.job.slow_score import SECONDS

pytestmark = pytest.mark.slow
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
RUNTIME, SLOW = "YT8M_TEST_RUNTIME", "0.1"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As `prepare` makes it."""
    prepare(tmp_path, [100, 160, 1, 200, 90, 120, 150, 80])
    return tmp_path


@pytest.fixture
def job(tmp_path: Path) -> Job:
    paths = write_shards(tmp_path / "shards", [30, 20, 1, 40, 25, 15])
    return Job(shards.sources(paths), str(tmp_path / "preds.csv"))


def run(folder: Path, cluster: Nodes, *more: str) -> tuple[int, str]:
    process = start(folder, cluster.address, *more)
    _, said = process.communicate(timeout=200)
    return process.returncode, said


def at_work(process: subprocess.Popen[Any], cluster: Nodes) -> None:
    """Wait until parts are run for `process`."""
    while not cluster.working():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@needs_ray
def test_a_cluster_gives_the_bytes_of_one_process_and_says_what_each_node_did(folder: Path, cluster: Nodes) -> None:
    code, said = run(folder, cluster, "--on-error", "skip")
    assert code == QUARANTINED, said
    assert same(folder)
    assert "score: 3 nodes, for 3 parts at once\n" in said
    assert said.count(" parts") >= 3


@needs_ray
def test_nothing_but_rows_is_printed_on_standard_output(folder: Path, cluster: Nodes) -> None:
    whole = (folder / "whole" / "preds.csv").read_bytes()
    command = ["shards", "-o", "-", "--ray", cluster.address, "--on-error", "skip", "--batch-size", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.scorer.job.slow_score", *command, "--device", "cpu"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, SECONDS: SLOW},
    )
    at_work(process, cluster)
    while not cluster.kill_worker(random.Random(0)):
        assert process.poll() is None
    rows, said = process.communicate(timeout=200)
    assert process.returncode == QUARANTINED, said
    assert rows == whole


@needs_ray
@pytest.mark.parametrize("parts", [None, 8], ids=["committed", "part files"])
def test_kills_at_random_moments_lose_nothing(tmp_path: Path, parts: int | None) -> None:
    tally = crash(tmp_path, kills=3, parts=parts)
    assert tally.kills.total() == 3
    assert tally.compared >= 1


@needs_ray
def test_a_node_that_is_lost_for_good_leaves_the_rest_to_others(folder: Path) -> None:
    with nodes() as own:
        process = start(folder, own.address, "--on-error", "skip", "--quiet", seconds=float(SLOW))
        while not own.kill_node(random.Random(0)):
            assert process.poll() is None, process.communicate()
        _, said = process.communicate(timeout=200)
    assert process.returncode == QUARANTINED, said
    assert same(folder)


@needs_ray
def test_a_bad_record_ends_the_job_or_is_quarantined(folder: Path, cluster: Nodes) -> None:
    code, said = run(folder, cluster, "--quiet")
    assert code == 4
    assert "shards/b.tfrecord: record 3 at byte" in said
    assert "then resume with --resume" in said
    assert said.count("\n") == 1
    assert run(folder, cluster, "--quiet", "--resume", "--on-error", "skip") == (QUARANTINED, "")
    assert same(folder)


@needs_ray
def test_ctrl_c_keeps_what_is_committed(folder: Path, cluster: Nodes) -> None:
    process = start(folder, cluster.address, "--on-error", "skip", "--quiet", seconds=float(SLOW))
    at_work(process, cluster)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 130
    assert said.splitlines()[0].startswith("score: SIGINT: ")
    assert re.fullmatch("score: (.* resume with: .*|stopped before anything was kept)", said.splitlines()[1])
    assert said.count("\n") == 2
    assert run(folder, cluster, "--on-error", "skip", "--quiet", "--resume") == (QUARANTINED, "")
    assert same(folder)


@needs_ray
def test_a_full_disk_is_one_line_and_can_be_resumed_from(
    folder: Path, cluster: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # its file would meet the limit too, and it says so
    half = (folder / "whole" / "preds.csv").stat().st_size // 2
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (half, half))  # of each file that the command writes
    process = start(folder, cluster.address, "--on-error", "skip", "--quiet", before=full)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 8, said
    assert said.count("\n") == 1
    assert not (folder / "preds.csv").exists()
    assert run(folder, cluster, "--on-error", "skip", "--quiet", "--resume") == (QUARANTINED, "")
    assert same(folder)


@needs_ray
def test_part_files_by_the_workers_merge_to_the_same_bytes(folder: Path, cluster: Nodes) -> None:
    options = ("--ray-parts", "5", "--on-error", "skip", "--quiet")
    process = start(folder, cluster.address, *options, seconds=float(SLOW))
    while not list(folder.glob("preds.csv.part-*")):  # so that one is kept
        assert process.poll() is None, process.communicate()
    process.kill()
    process.communicate()
    code, said = run(folder, cluster, *options)
    assert (code, "an earlier run stopped" in said) in ((9, True), (QUARANTINED, False))  # none was unfinished
    assert run(folder, cluster, *options, "--resume") == (QUARANTINED, "")
    code, said = run(folder, cluster, *options[:-1], "--resume")
    assert "5 parts of an earlier run are kept" in said
    merge = [sys.executable, "-m", "yt8m", "merge", "preds.csv.part-*-of-5", "-o", "preds.csv", "--quiet"]
    assert subprocess.run(merge, cwd=folder).returncode == QUARANTINED
    for path in folder.glob("preds.csv.part-*"):
        path.unlink()
    assert same(folder)


class Hungry(FakePredictor):
    """Has no memory until the file exists that it writes; never where it has no file to write."""

    def __init__(self, once: str) -> None:
        super().__init__()
        self._once = Path(once) if once else None

    def run(self, features: Features, k: int = DEFAULT_K) -> Predictions:
        if self._once is None or not self._once.exists():
            if self._once is not None:
                self._once.touch()
            raise MemoryError
        return super().run(features, k)


def open_hungry(once: str, device: str | None) -> Predictor:
    return Hungry(once)


def open_fake(device: str | None) -> Predictor:
    return FakePredictor(facts=replace(FACTS, runtime=os.environ.get(RUNTIME, FACTS.runtime)))


def open_none(device: str | None) -> Predictor:
    raise ModelError("models/fake.onnx: no such file")


def open_noting(folder: str, device: str | None) -> Predictor:
    """Leaves a file that is named as the device."""
    (Path(folder) / str(device)).touch()
    return FakePredictor()


def on_cluster(job: Job, address: str, open_model: Callable[[str | None], Predictor], **more: Any) -> list[str]:
    """Score `job` there with the fake predictor; what was logged."""
    said: list[str] = []
    where = Cluster(address, open_model, **more)
    score_on_cluster(job, FakePredictor(), where, StopRequest(), lambda progress: None, said.append)
    return said


@needs_ray
def test_a_worker_without_memory_is_tried_again_and_then_an_error(
    job: Job, cluster: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scorer.job.workers._RETRIES", 2)
    whole = replace(job, output=str(tmp_path / "whole" / "preds.csv"))
    (tmp_path / "whole").mkdir()
    do(whole)
    on_cluster(job, cluster.address, partial(open_hungry, str(tmp_path / "once")))
    assert files_of(Path(job.output)) == files_of(Path(whole.output))
    with pytest.raises(DeviceError, match="ran out of memory") as caught:
        on_cluster(job, cluster.address, partial(open_hungry, ""))
    assert Hint.SMALLER_BATCH in caught.value.hints


@needs_ray
def test_a_node_without_the_model_is_named(job: Job, cluster: Nodes) -> None:
    with pytest.raises(ModelError, match=r"node [0-9.]+ \([0-9a-f]{6}\): models/fake.onnx: no such file"):
        on_cluster(job, cluster.address, open_none)


@needs_ray
def test_a_node_of_another_runtime_is_named(job: Job) -> None:
    says = r"node .* scores otherwise: runtime is fake 2 and was fake 1 here"
    with nodes(1, env_vars={RUNTIME: "fake 2"}) as own, pytest.raises(DeviceError, match=says):
        on_cluster(job, own.address, open_fake)


@needs_ray
def test_a_node_of_another_version_is_named(job: Job, cluster: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorer.job.workers.version", lambda: "0.0.9")
    with pytest.raises(DeviceError, match=r"node .* has yt8m-edge .*, and this machine 0\.0\.9"):
        on_cluster(job, cluster.address, open_fake)


@needs_ray
def test_workers_get_the_gpus_that_ray_gives_them(job: Job, tmp_path: Path) -> None:
    """Each of two GPUs, of a node that says that it has them, is shared by two workers; or both are one worker's."""
    with nodes(1, num_cpus=6, num_gpus=2) as own:
        for share, gpus, devices in (("half", 0.5, {"cuda:0", "cuda:1"}), ("both", 2, {"cuda:0,1"})):
            (tmp_path / share).mkdir()
            again = replace(job, output=str(tmp_path / f"{share}.csv"))
            said = on_cluster(again, own.address, partial(open_noting, str(tmp_path / share)), gpus=gpus)
            assert f"1 nodes, for {2 / gpus:.0f} parts at once" in said
            seen = {path.name for path in (tmp_path / share).iterdir()}
            assert seen <= devices
            assert seen


def stop_within(part: Part, job: Job) -> None:
    """Have it committed up to its first batch."""
    stop = StopRequest()
    with pytest.raises(Stopped):
        score_part(job, part, FakePredictor(), stop, lambda progress: stop.set())


@pytest.mark.usefixtures("each_batch_on_its_own")
def test_only_a_part_that_committed_something_is_refused(job: Job, tmp_path: Path) -> None:
    parts = plan(job.shards, 3)
    (tmp_path / ".preds.csv.part-2-of-3.partial").touch()
    assert _kept(job, parts, FakePredictor()) == {}
    stop_within(parts[1], job)
    with pytest.raises(ResumeError, match="part-2-of-3: an earlier run stopped after 8 videos"):
        _kept(job, parts, FakePredictor())


@needs_ray
@pytest.mark.usefixtures("each_batch_on_its_own")
def test_parts_of_an_earlier_run_are_refused_kept_or_discarded(job: Job, cluster: Nodes, tmp_path: Path) -> None:
    def parts(job: Job, count: int = 3) -> tuple[int, int]:
        where = Cluster(cluster.address, open_fake)
        report = score_parts_on_cluster(job, count, FakePredictor(), where, StopRequest(), lambda progress: None)
        return report.kept, report.here

    assert parts(job) == (0, 131)
    (tmp_path / "preds.csv.part-2-of-3").unlink()
    assert parts(replace(job, resume_policy="resume"))[0] == 2
    assert parts(replace(job, resume_policy="resume", top_k=5))[0] == 0, "other options, other parts"
    stop_within(plan(job.shards, 3)[1], job)
    with pytest.raises(ResumeError, match="part-2-of-3: an earlier run stopped after 8 videos"):
        parts(job)
    assert parts(replace(job, resume_policy="restart")) == (0, 131)
    merge_files(found_parts([str(path) for path in tmp_path.glob("preds.csv.part-*")]), job.output)
    whole = replace(job, output=str(tmp_path / "whole.csv"))
    do(whole)
    assert Path(job.output).read_bytes() == Path(whole.output).read_bytes()


def test_a_part_waits_for_the_lock_of_a_worker_that_is_lost(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[str] = []

    def busy(*arguments: object) -> str:
        tries.append("again")
        if len(tries) < 3:
            raise BusyError("held")
        return "done"

    monkeypatch.setattr("scorer.job.cluster.score_part", busy)
    monkeypatch.setattr("scorer.job.cluster._BUSY_LOOK_SECONDS", 0.0)
    part = plan(job.shards, 1)[0]
    made: list[Any] = [*_score(job, part, FakePredictor())]
    assert made == ["done"]
    tries.clear()
    monkeypatch.setattr("scorer.job.cluster._BUSY_SECONDS", -1.0)
    with pytest.raises(BusyError):
        [*_score(job, part, FakePredictor())]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="ray is installed")
def test_without_ray_a_line_names_the_extra(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [3])
    onnx_models.save_model(tmp_path / "tiny.onnx", inputs=INPUTS, labels=LABELS)
    command = ["score", "shards", "-o", "preds.csv", "--model", "tiny.onnx", "--ray"]
    done = subprocess.run([sys.executable, "-m", "yt8m", *command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 7
    assert "ray is not installed; pip install" in done.stderr
    assert "[cpu,ray]" in done.stderr


def test_options_of_a_cluster_that_do_not_go_together(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [3])
    for says, *more in (
        ("add --ray, or use --part", "--ray-parts", "3"),
        ("leave --part out", "--ray", "--part", "1/2"),
        ("use --device cuda", "--ray", "--ray-gpus", "0.5", "--device", "cpu"),
        ("neither a share of a GPU nor a number of them", "--ray", "--ray-gpus", "1.5"),
    ):
        command = [sys.executable, "-m", "yt8m", "score", "shards", "-o", "preds.csv", *more]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert says in done.stderr
