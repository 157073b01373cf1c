"""Die by SIGKILL at each call that reaches the disk, one after another, then resume and compare.

    python -m tests.scorer.job.kill_points [FORMAT [EXTENSION]]

EXTENSION is that of a file of embeddings, which the job writes too where it is given.

Each trial runs in a fork of this process, which has neither threads nor ONNX Runtime. A trial dies at call i of a job,
dies again at call j of the resumed job, and is then finished.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest import mock

from scorer.job.spec import Job
from scorer.outputs import append, atomic, file, journal, lock, own
from tests import shards
from tests.scorer.fakes import do, files_of, write_shards

OLD = b"what stood there before\n"
_CALLS = frozenset(
    {"open", "write", "pwrite", "pread", "fsync", "replace", "unlink", "ftruncate", "lseek", "mkdir", "chmod"}
)


class FaultyOs:
    """The module `os`, whose call number `at` (of those that reach the disk) fails with `error`, or kills if 0.

    A write that fails has written half of its bytes before.
    """

    def __init__(self, at: int, error: int = 0) -> None:
        self.at, self.error, self.calls = at, error, 0

    def __getattr__(self, name: str) -> Any:
        return self._counted(name) if name in _CALLS else getattr(os, name)

    def _counted(self, name: str) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                if name == "write":
                    os.write(arguments[0], arguments[1][: len(arguments[1]) // 2])
                self._fail()
            return getattr(os, name)(*arguments, **options)

        return call

    def _fail(self) -> None:
        if not self.error:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.error, os.strerror(self.error))

    def install(self) -> None:
        for module in (append, atomic, file, journal, lock, own):
            module.os = self  # type: ignore[attr-defined]


def faulty_shards(folder: Path) -> list[str]:
    """30 videos in 3 shards, one record of them damaged."""
    paths = write_shards(folder, [9, 14, 7])
    shards.damage_payload(paths[1], 3)
    return paths


def each_batch_on_its_own() -> AbstractContextManager[object]:
    """Commit after each batch of 8, whether or not the next ones are there by then."""
    return mock.patch("scorer.pipeline.predict.COALESCED_VIDEOS", 1)


def faulty_job(paths: list[str], folder: Path, *, old: bool, row_format: str = "pairs", embeddings: str = "") -> Job:
    """A job over `faulty_shards` that resumes where it can and commits after every batch of 8.

    embeddings: the extension of the file of these, beside the output; empty for none.
    """
    folder.mkdir(parents=True)
    output = folder / "preds.csv"
    if old:
        output.write_bytes(OLD)
    return Job(
        shards.sources(paths),
        str(output),
        on_error="skip",
        commit_seconds=0.0,
        resume_policy="resume",
        row_format=row_format,
        embeddings=f"{output}.{embeddings}" if embeddings else "",
    )


def kill_everywhere(folder: Path, row_format: str, embeddings: str = "") -> int:
    """How many kills were survived: one at each call, each followed by one at a call of the resumed job.

    Raises AssertionError where the output is neither the old file nor whole, or a byte differs in the end.
    """
    paths = faulty_shards(folder / "shards")
    whole = faulty_job(paths, folder / "whole", old=False, row_format=row_format, embeddings=embeddings)
    do(whole)
    expected = files_of(Path(whole.output))
    kills = 0
    for at in range(1, 10_000):
        job = faulty_job(paths, folder / str(at), old=at % 2 == 0, row_format=row_format, embeddings=embeddings)
        if not _dies(job, at):
            break
        _check(Path(job.output), expected)
        kills += 1 + _dies(job, at * 7 % 40 + 1)
        _check(Path(job.output), expected)
        do(job)
        assert files_of(Path(job.output)) == expected, f"bytes differ after a kill at call {at}"
    return kills


def _dies(job: Job, at: int) -> bool:
    """Do `job` in a fork that is killed at call `at`; False when it ended before."""
    child = os.fork()
    if child == 0:
        FaultyOs(at).install()
        try:
            do(job)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def _check(output: Path, expected: dict[str, bytes]) -> None:
    if output.exists():
        assert output.read_bytes() in (OLD, expected["preds.csv"]), "half a file"
    for name in expected.keys() & {"preds.csv.npy", "preds.csv.parquet"}:
        if (beside := output.with_name(name)).exists():
            assert beside.read_bytes() == expected[name], "half a file"
        elif output.exists():
            assert output.read_bytes() == OLD, "rows without their embeddings"


def main() -> None:
    row_format, embeddings, *_ = [*sys.argv[1:], "pairs", ""] if len(sys.argv) < 2 else [*sys.argv[1:], ""]
    with tempfile.TemporaryDirectory() as folder, each_batch_on_its_own():
        print(f"{kill_everywhere(Path(folder), row_format, embeddings)} kills, 0 bytes differ")


if __name__ == "__main__":
    main()
