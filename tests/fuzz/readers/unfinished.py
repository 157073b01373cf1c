"""What an unfinished job leaves, through resuming it; part files, through merging and resuming them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

from scorer.errors import DeviceError
from scorer.job.job_array import found_parts, merge_files, score_part
from scorer.job.part import plan
from scorer.job.spec import Job, Progress
from scorer.system.signals import StopRequest
from tests import shards
from tests.fuzz.readers.harness import FuzzedReader
from tests.fuzz.readers.mutations import changed_bytes, changed_json, dumped
from tests.scorer.fakes import LABELS, FailingModel, FakePredictor, do, files_of, write_shards
from tests.scorer.job.frames import frames_of, written
from tests.scorer.journals import as_journal

_WORK = ("journal", "partial", "quarantine", "ids", "hits")


def make_journal(folder: Path) -> FuzzedReader:
    """An unfinished job, one of whose files is another. Whatever is resumed must give the bytes of a whole run."""
    job = _job(folder)
    do(job)
    expected = files_of(Path(job.output))
    _clean(job)
    with _a_batch_a_chunk(), suppress(DeviceError):
        do(job, FailingModel(4))
    stopped = files_of(Path(job.output))
    failing = mock.patch("scorer.outputs.file.FileSink._move_all", side_effect=DeviceError("stop"))
    with _a_batch_a_chunk(), failing, suppress(DeviceError):
        do(replace(job, resume_policy="resume"))
    completed = files_of(Path(job.output))
    states = [stopped, completed]

    def make(random: Random) -> bytes:
        state = random.randrange(2)
        names = [name for name in states[state] if not name.endswith("lock")]
        name = random.choice(names + [name for name in names if name.endswith("journal")] * 4)
        data = states[state][name]
        forged = name.endswith("journal") and random.random() < 0.6
        changed = _changed_lines(random, data) if forged else changed_bytes(random, data, [*stopped.values()])
        return f"{state} {int(forged)} {name}\n".encode() + changed

    def read(data: bytes) -> None:
        line, _, content = data.partition(b"\n")
        state, forged, name = line.decode().split(" ")
        _clean(job)
        for known, whole in states[int(state)].items():
            Path(job.output).with_name(known).write_bytes(content if known == name else whole)
        do(replace(job, resume_policy="resume"))
        if not int(forged):  # whoever can write here can forge an output too (SECURITY.md)
            assert files_of(Path(job.output)) == expected

    return FuzzedReader(make, read, 64)


def _job(folder: Path) -> Job:
    paths = write_shards(folder / "shards", [9, 14, 7])
    shards.damage_payload(paths[1], 3)
    (folder / "out").mkdir()
    return Job(shards.sources(paths), str(folder / "out" / "preds.csv"), on_error="skip", commit_seconds=0.0)


def _clean(job: Job) -> None:
    for path in Path(job.output).parent.iterdir():
        path.unlink()


@contextmanager
def _a_batch_a_chunk() -> Iterator[None]:
    with mock.patch("scorer.pipeline.predict.COALESCED_VIDEOS", 1):
        yield


def _changed_lines(random: Random, data: bytes) -> bytes:
    """A journal of which one line, or the order of some, is another."""
    lines: list[Any] = [*map(_unsealed, data.splitlines())]
    place = random.randrange(len(lines))
    if random.random() < 0.8:
        lines[place] = dumped(random, changed_json(random, lines[place]))
    elif random.random() < 0.5:
        lines.insert(random.randrange(len(lines)), lines[place])
    else:
        del lines[place]
    return as_journal(lines)


def _unsealed(line: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(line)
    del entry["crc32c"]
    return entry


def make_part(folder: Path) -> FuzzedReader:
    """The first of two part files, complete or not: merged with the second, or resumed."""
    names = [f"name {label}" for label in range(LABELS)]
    job = _job(folder)
    job = replace(job, output=job.output.replace(".csv", ".jsonl"), row_format="jsonl", names=names)
    parts = plan(job.shards, 2)
    with _a_batch_a_chunk():
        paths = [score_part(job, part, FakePredictor(), StopRequest(), _unwatched).path for part in parts]
        wholes = [Path(path).read_bytes() for path in paths]
        Path(paths[0]).unlink()
        with suppress(DeviceError):
            score_part(job, parts[0], FailingModel(1), StopRequest(), _unwatched)
    (left,) = Path(job.output).parent.glob(".*partial")
    torn = left.read_bytes()

    def make(random: Random) -> bytes:
        resumed = random.random() < 0.3
        data = torn if resumed else wholes[0]
        changed = _changed_frames(random, data) if random.random() < 0.8 else changed_bytes(random, data, wholes)
        return bytes([resumed]) + changed

    def read(data: bytes) -> None:
        _clean(job)
        Path(paths[1]).write_bytes(wholes[1])
        if data[0]:
            left.write_bytes(data[1:])
            with _a_batch_a_chunk():
                score_part(replace(job, resume_policy="resume"), parts[0], FakePredictor(), StopRequest(), _unwatched)
        else:
            Path(paths[0]).write_bytes(data[1:])
        record = merge_files(found_parts(paths), job.output)
        assert record.read == record.scored + record.quarantined
        lines = Path(job.output).read_bytes().splitlines()
        assert sum(line.startswith(b"{") for line in lines) == record.scored

    return FuzzedReader(make, read, 64)


def _unwatched(progress: Progress) -> None:
    pass


def _changed_frames(random: Random, data: bytes) -> bytes:
    """A part file of which one frame is another, with checksums that are right."""
    first, frames = frames_of(data)
    place = random.randrange(len(frames))
    kind, payload = frames[place]
    line, newline, arrays = payload.partition(b"\n")
    what = random.random()
    if what < 0.6:
        payload = dumped(random, changed_json(random, json.loads(line))) + newline + arrays
    elif what < 0.8:
        payload = changed_bytes(random, payload)
    elif what < 0.9:
        frames.insert(random.randrange(len(frames)), frames[place])
    else:
        kind = random.choice((b"P", b"C", b"M", b"E", b"x"))
    frames[place] = kind, payload
    return written(first, frames)
