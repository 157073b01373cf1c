"""Worker processes: the same batches as one decoder gives, and nothing left behind."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scorer.errors import InputError, RecordError, ShardError
from scorer.inputs.batching import batches
from scorer.inputs.position import Position
from scorer.inputs.readers import decoded_blocks
from scorer.inputs.records import Schema
from scorer.inputs.source import LocalFile, Source
from scorer.inputs.workers import decoded_by_workers
from tests import shards
from tests.scorer.inputs.test_batching import SCHEMA, payload, rows, write

START = Position(0, 0, 0)


def everything(paths: list[str], schema: Schema = SCHEMA, **options: Any) -> list[Any]:
    """All that batches hold, in plain types."""
    found = []
    for batch in batches(shards.sources(paths), schema, 7, on_error="skip", **options):
        features = {name: values.tolist() for name, values in batch.features.items()}
        labels = batch.label_values.tolist(), batch.label_splits.tolist(), batch.labelled
        found.append((batch.ids, features, labels, batch.end, batch.quarantined, batch.finished))
        batch.release()
    return found


def children() -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().partition(") ")
            state, parent = rest.split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(name.split()[0]))
    return found


@pytest.fixture
def damaged(tmp_path: Path) -> list[str]:
    """Shards with every sort of fault."""
    paths = write(tmp_path, [9, 1, 14, 0, 6, 20])
    shards.damage_payload(paths[0], 4)
    shards.damage_length(paths[2], 11)
    irregular = [
        payload(90),
        b"",
        payload(91) + b"\x2a\x00",
        shards.example("nan", [1], {"rgb": [1, np.nan, 2], "audio": [1]}),
    ]
    paths.append(shards.write_shard(tmp_path / "irregular", [*irregular, payload(92), payload(93)]))
    shards.truncate(paths[5], 700)
    return paths


@pytest.mark.parametrize("workers", [1, 2, 9])
def test_batches_are_the_same(damaged: list[str], workers: int) -> None:
    assert everything(damaged, workers=workers) == everything(damaged)


def test_resumed_batches_are_the_same(damaged: list[str]) -> None:
    ends = [end for *_, end, _, _ in everything(damaged)]
    for start in ends[:: len(ends) // 3]:
        assert everything(damaged, workers=2, start=start) == everything(damaged, start=start)


def test_wide_features(tmp_path: Path) -> None:
    width = 500_000
    payloads = [shards.example(f"id{i}", [i], {"x": np.full(width, i, np.float32)}) for i in range(3)]
    schema = Schema({"x": width})
    path = shards.write_shard(tmp_path / "x", payloads)
    assert everything([path], schema, workers=1) == everything([path], schema)


def damaged_source(path: str) -> Source:
    shards.damage_payload(path, 3)
    return LocalFile.at(path)


def vanished_source(path: str) -> Source:
    source = LocalFile.at(path)
    os.unlink(path)
    return source


@pytest.mark.parametrize(("fault", "error"), [(damaged_source, ShardError), (vanished_source, InputError)])
def test_errors_come_through_after_the_batches_before_them(
    tmp_path: Path, fault: Callable[[str], Source], error: type[Exception]
) -> None:
    paths = write(tmp_path, [10, 10, 10])
    found = [*shards.sources(paths[:2]), fault(paths[2])]
    messages = []
    for workers in (0, 2):
        reader, seen = batches(found, SCHEMA, 4, workers=workers), 0
        with pytest.raises(error) as raised:
            seen += sum(len(rows(batch)) for batch in reader)
        messages.append((str(raised.value), seen))
    assert messages[0] == messages[1]
    assert not children()


def test_errors_can_be_pickled() -> None:
    error = RecordError("x.tfrecord", "irregular", record=3, offset=77, remedy="repair it")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), vars(again)) == (str(error), vars(error))


def test_early_end_leaves_no_process(damaged: list[str]) -> None:
    reader = batches(shards.sources(damaged), SCHEMA, 2, on_error="skip", workers=2)
    next(reader)
    assert len(children()) == 2
    reader.close()
    assert not children()


def test_killed_worker_is_an_error(tmp_path: Path) -> None:
    source = decoded_by_workers(shards.sources(write(tmp_path, [1] * 40)), SCHEMA, START, 1)
    next(source)
    for child in children():
        os.kill(child, signal.SIGKILL)
    with pytest.raises(InputError, match=r"a decoding process ended with status -9; "):
        list(source)


@pytest.mark.parametrize("call", ["socket.socketpair", "os.memfd_create", "os.posix_fallocate", "subprocess.Popen"])
@pytest.mark.parametrize("started", [0, 2])
def test_fewer_processes_where_no_more_can_be_started(
    damaged: list[str], call: str, started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ulimit -n`, `ulimit -u` and a memory limit stop one of these calls: the batches are the same."""
    expected, calls = everything(damaged), 0
    owner, _, name = call.partition(".")
    real = getattr(sys.modules[owner], name)

    def limited(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > started:
            raise OSError(11, "Resource temporarily unavailable")
        return real(*arguments, **options)

    monkeypatch.setattr(sys.modules[owner], name, limited)
    said: list[tuple[int, str]] = []
    descriptors = len(os.listdir("/proc/self/fd"))
    assert everything(damaged, workers=3, fewer=lambda *what: said.append(what)) == expected
    assert said == [(started, "Resource temporarily unavailable")]
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert not children()


@pytest.mark.parametrize("more", range(4, 22, 3))
def test_a_real_limit_of_open_files(tmp_path: Path, more: int) -> None:
    paths = write(tmp_path, [9, 1, 14, 6])
    code = (
        "import os, resource\nfrom tests.scorer.inputs.test_workers import *\n"
        f"expected, opened = everything({paths!r}), len(os.listdir('/proc/self/fd'))\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, (opened + {more}, opened + {more}))\n"
        f"assert everything({paths!r}, workers=3) == expected\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_code_of_the_working_folder_is_imported(tmp_path: Path) -> None:
    """Modules of every name that a decoding process imports lie there, and the folder is in its parent's path."""
    paths = write(tmp_path / "shards", [3, 3])
    names = "import sys, scorer.inputs.workers; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-P", "-c", names], check=True, capture_output=True, text=True)
    (tmp_path / "here").mkdir()
    for name in {*done.stdout.split(), "scorer", "google", "pickle", "select"} - {"__main__"}:
        (tmp_path / "here" / f"{name}.py").write_text(f"open('planted', 'a').write('{name} ')\nraise SystemExit(7)\n")
    code = (
        "import sys\nfrom scorer.inputs.batching import batches\nfrom scorer.inputs.records import Schema\n"
        "from scorer.inputs.source import LocalFile\nfrom scorer.inputs import workers\nsys.path.insert(0, '')\n"
        f"found = batches([LocalFile.at(path) for path in {paths!r}], Schema({SCHEMA.inputs!r}), 4, workers=2)\n"
        "assert sum(map(len, found)) == 6\n"
    )
    subprocess.run([sys.executable, "-P", "-c", code], check=True, cwd=tmp_path / "here")
    assert not (tmp_path / "here" / "planted").exists()


def test_workers_do_not_outlive_a_killed_parent(damaged: list[str]) -> None:
    code = (
        "import os, signal\nfrom tests.scorer.inputs.test_workers import *\n"
        f"reader = batches(shards.sources({damaged!r}), SCHEMA, 2, on_error='skip', workers=2)\n"
        "next(reader)\nprint(*children(), flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    workers = [int(word) for word in parent.stdout.split()]
    assert len(workers) == 2, parent.stderr
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


def test_interrupt_is_for_the_parent(damaged: list[str]) -> None:
    with_workers = batches(shards.sources(damaged), SCHEMA, 2, on_error="skip", workers=2)
    next(with_workers)
    assert all(os.getpgid(child) != os.getpgid(0) for child in children())
    with_workers.close()


def test_blocks_wait_for_the_parent(tmp_path: Path) -> None:
    """More blocks than a worker has slots for."""
    paths = [shards.write_shard(tmp_path / f"{i}", [payload(i)]) for i in range(40)]
    found = [block.rows.ids for block in decoded_by_workers(shards.sources(paths), SCHEMA, START, 2)]
    assert found == [block.rows.ids for block in decoded_blocks(enumerate(shards.sources(paths)), SCHEMA, START)]
