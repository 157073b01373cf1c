"""Kill `score` at random moments of jobs from a store to a store, resume it, and compare with an uninterrupted run.

    python -m tests.scorer.job.store_crash --kills 100

The store is an S3 server on loopback, some shards are compressed, and outputs take turns in FORMATS. Every run commits
after each batch and sends its output in parts of 4 KB, so that kills land within uploads too. Uploads that were cut off
are aborted as the resumed run says, which must name all that there are; at the end of a job none may be left.
"""

from __future__ import annotations

import argparse
import gzip
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any
from unittest.mock import patch

from scorer.outputs.object_sink import work_folder
from tests import onnx_models
from tests.scorer.fakes import INPUTS, LABELS, write_shards
from tests.scorer.job.crash import KILLED, Tally, stat_of
from tests.stores import s3

FORMATS = ("csv", "csv.gz", "parquet")
MOST = 8
"""Kills of one job."""
ROOT = f"s3://{s3.BUCKET}/kills"
_NAMED = re.compile(r"an upload was cut off.* abort-multipart-upload --bucket bucket --key (\S+)")


@dataclass
class StoreTally(Tally):
    """aborted: uploads that a kill left, all of them named by the run that followed."""

    aborted: int = 0

    def __str__(self) -> str:
        return f"{super().__str__()}, {self.aborted} uploads named and aborted, none left"


@dataclass
class _CrashStore:
    """The server at `url`, and a model for what is in it."""

    url: str
    model: str
    environment: dict[str, str]
    client: Any = field(init=False)

    def __post_init__(self) -> None:
        self.client = s3.client(self.url)

    def start(self, output: str, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.scorer.job.sending", ROOT, f"{ROOT}/packed/*", "-o", f"{ROOT}/{output}"]
        options = ("--model", self.model, "--quiet", *options)
        return subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True, env=self.environment)

    def names(self) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=s3.BUCKET)["Contents"]]

    def uploads(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = self.client.list_multipart_uploads(Bucket=s3.BUCKET).get("Uploads", [])
        return found

    def take(self, output: str) -> dict[str, bytes]:
        """What stands there for `output`, by suffix, its name left out; it is removed."""
        found = {}
        for key in self.names():
            if key.startswith(f"kills/{output}"):
                content = self.client.get_object(Bucket=s3.BUCKET, Key=key)["Body"].read()
                self.client.delete_object(Bucket=s3.BUCKET, Key=key)
                found[key.removeprefix(f"kills/{output}")] = content.replace(output.encode(), b"OUTPUT")
        return found


def crash(folder: Path, kills: int, seed: int = 0) -> StoreTally:
    """Kill and resume until `kills` kills are survived, and a job in each of FORMATS finished and compared.

    Raises AssertionError where a byte differs, an upload is left or a run ends in an unexpected way.
    """
    chance, tally = random.Random(seed), StoreTally()
    with _store(folder) as store:
        expected, seconds = {}, {}
        for format in FORMATS:
            began = time.monotonic()
            _, errors = (process := store.start(f"whole.{format}", "--batch-size", "64")).communicate()
            assert process.returncode == 0, errors
            seconds[format], expected[format] = time.monotonic() - began, store.take(f"whole.{format}")
        for format in cycle(FORMATS):
            if tally.kills >= kills and tally.compared >= len(FORMATS):
                break
            _one_job(store, f"preds.{format}", seconds[format], kills, tally, chance)
            assert store.take(f"preds.{format}") == expected[format]
            assert store.uploads() == [], "something is left that is paid for"
            assert not work_folder(f"{ROOT}/preds.{format}").exists(), "work was left behind"
            tally.compared += 1
    return tally


def _one_job(
    store: _CrashStore, output: str, seconds: float, kills: int, tally: StoreTally, chance: random.Random
) -> None:
    """Kill and resume a job until it ends by itself, after MOST kills or `kills` in all at the latest."""
    most, said = min(kills, tally.kills + MOST), ""
    while True:
        options = ["--resume", "--batch-size", str(chance.choice((7, 64, 150)))]
        process = store.start(output, *options)
        if tally.kills < most:
            pattern = chance.choice(("", "*.journal", "*.sending"))
            _wait(process, work_folder(f"{ROOT}/{output}"), pattern)
            try:
                process.wait(chance.uniform(0, 0.3 if pattern else 1) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
        _, errors = process.communicate()
        said += errors
        if process.returncode != KILLED:
            assert process.returncode == 0, errors
            break
        tally.kills += 1
        tally.found[_state(store, output)] += 1
    for upload in store.uploads():
        assert upload["Key"] in _NAMED.findall(said), "an upload that was cut off is not named"
        store.client.abort_multipart_upload(Bucket=s3.BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
        tally.aborted += 1


def _wait(process: subprocess.Popen[str], work: Path, pattern: str) -> None:
    """Until a file of this pattern, any at all, is another in the folder `work`, or the process has ended."""
    if not pattern:
        return
    before = _stats(work, pattern)
    while process.poll() is None and _stats(work, pattern) in ([], before):
        time.sleep(0.002)


def _stats(work: Path, pattern: str) -> list[tuple[int, int]]:
    return [stat for path in work.glob(pattern) if (stat := stat_of(path))]


def _state(store: _CrashStore, output: str) -> str:
    """What a kill left."""
    work = work_folder(f"{ROOT}/{output}")
    if not (journal := work / f".{output}.journal").exists():
        return "after the end" if f"kills/{output}.done.json" in store.names() else "before the journal"
    if [*work.glob("*.sending")]:
        return "within an upload"
    lines = journal.read_bytes().splitlines()
    return "before the first commit" if len(lines) < 2 else "with commits to resume from"


@contextmanager
def _store(folder: Path) -> Iterator[_CrashStore]:
    """With shards of which some are compressed, and a folder for the work in this process's environment."""
    state = str(folder / "state")
    model = onnx_models.save_model(folder / "tiny.onnx", inputs=INPUTS, labels=LABELS)
    small_parts = patch("moto.s3.models.S3_UPLOAD_PART_MIN_SIZE", 1)
    with s3.running() as url, small_parts, patch.dict(os.environ, {**s3.environment(url), "XDG_STATE_HOME": state}):
        store = _CrashStore(url, model, dict(os.environ))
        for number, path in enumerate(write_shards(folder / "shards", [400] * 8)):
            content, pack = Path(path).read_bytes(), (None, gzip.compress, zlib.compress)[number % 3]
            key = f"kills/packed/{number}" if pack else f"kills/{number}.tfrecord"
            store.client.put_object(Bucket=s3.BUCKET, Key=key, Body=pack(content) if pack else content)
        yield store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(crash(Path(folder), options.kills, options.seed))


if __name__ == "__main__":
    main()
