"""A job without a model, and the sinks that the conformance suite and the state machine run it through.

A new kind of sink is one more harness in `HARNESSES`.
"""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from scorer.inputs.batching import Quarantined
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.source import FileStat
from scorer.job.part import job_digest
from scorer.job.part_file import PartFacts, PartFile, open_part_file
from scorer.job.record import Options, ShardRecord
from scorer.kernels.packed import PackedStrings
from scorer.outputs.csv_rows import Pairs
from scorer.outputs.embeddings import embedding_output
from scorer.outputs.formats import make_format
from scorer.outputs.memory import MemorySink
from scorer.outputs.object_sink import work_folder
from scorer.outputs.open import open_sink
from scorer.outputs.sink import Chunk, Commit, JobKey, Kept, ResumePolicy, ShardId, Sink
from tests.scorer.outputs import toy_sink
from tests.stores import s3

RECORDS = [5, 3, 8, 1]
"""Of each shard."""
RECORD_BYTES = 10
BAD = {2, 5, 16}
"""Records that are quarantined, counted over all shards."""
K, WIDTH = 3, 3


def key(version: int = 1, **options: Any) -> JobKey:
    shards = tuple(ShardId(f"/s/{i}", FileStat(RECORD_BYTES * n, version)) for i, n in enumerate(RECORDS))
    return JobKey({"model": "m", "top_k": K, **options}, shards)


def row(record: int) -> tuple[bytes, list[int], list[float]]:
    """Id, labels and scores of a record."""
    return b"v%d" % record, [record % 7, record % 5 + 10, 30], [1 - record / 64, 0.25, 0.125]


def rows(count: int) -> list[tuple[bytes, list[int], list[float]]]:
    """Those of the first records, the bad ones left out."""
    return [row(record) for record in range(count) if record not in BAD]


def chunk(start: Position, count: int) -> Chunk:
    """Up to `count` records from `start` on, over the ends of shards."""
    first = sum(RECORDS[: start.shard]) + start.record
    last = min(first + count, sum(RECORDS))
    good = [row(record) for record in range(first, last) if record not in BAD]
    bad = [Quarantined("s", record, 0, "bad", 0) for record in range(first, last) if record in BAD]
    shard, record, finished = start.shard, start.record + last - first, []
    while shard < len(RECORDS) and record >= RECORDS[shard]:
        record -= RECORDS[shard]
        finished.append((shard, RECORDS[shard]))
        shard += 1
    return Chunk(
        ids=PackedStrings.of([name for name, _, _ in good]),
        labels=np.array([labels for _, labels, _ in good], np.int64).reshape(len(good), K),
        scores=np.array([scores for _, _, scores in good], np.float32).reshape(len(good), K),
        metric_records=b"",
        quarantined=bad,
        end=Position(shard, record, RECORD_BYTES * record),
        finished=finished,
        embeddings=vectors([name for name, _, _ in good]),
    )


def vectors(ids: Sequence[bytes]) -> NDArray[np.float32]:
    """The embeddings of the videos with these ids, `WIDTH` wide."""
    return np.array([[int(id[1:]), -0.5, 1 / 3] for id in ids], np.float32).reshape(len(ids), WIDTH)


class SinkDriver:
    """A job over a sink: what a writer does, without counts that a test would not see."""

    def __init__(self, sink: Sink, job: JobKey) -> None:
        self.sink, self._job = sink, job
        last = sink.last or Commit(BEGINNING)
        self.end, self._scored, self._bad = last.end, last.scored, last.quarantined
        self._finished: list[tuple[FileStat, int]] = []

    @property
    def done(self) -> int:
        """Records so far."""
        return self._scored + self._bad

    def append(self, count: int) -> None:
        more = chunk(self.end, count)
        self.sink.append(more)
        self._finished += [(self._job.shards[index].stat, records) for index, records in more.finished]
        self._scored, self._bad, self.end = self._scored + len(more), self._bad + len(more.quarantined), more.end

    def commit(self) -> None:
        partial = self._job.shards[self.end.shard].stat if self.end.offset else None
        self.sink.commit(Commit(self.end, self._scored, self._bad, 0, tuple(self._finished), partial))
        self._finished = []

    def complete(self) -> None:
        """The rest, in small pieces."""
        while self.end.shard < len(RECORDS):
            self.append(3)
        self.commit()
        self.sink.complete(record())


def record() -> dict[str, Any]:
    """Of the whole job; a part file wants the scored ones and its shards."""
    shards = [ShardRecord(shard.canonical, shard.stat, n) for shard, n in zip(key().shards, RECORDS, strict=True)]
    return {"scored": sum(RECORDS) - len(BAD), "shards": [shard.to_json() for shard in shards]}


class Once(Protocol):
    """One output of some kind. keeps: what it keeps beside the rows."""

    keeps: Sequence[Kept]

    def open(self, job: JobKey, policy: ResumePolicy) -> AbstractContextManager[Sink]: ...

    def output(self) -> tuple[list[tuple[bytes, list[int], list[float]]], Mapping[str, Any]] | None:
        """The rows and the record that a user finds; None where there is no output."""

    def unfinished(self) -> Sequence[str]:
        """What stands there beside a whole output."""


class Harness(Once, Protocol):
    """One at which jobs may crash."""

    def snapshot(self) -> Any:
        """All that would outlive the process if it died now."""

    def restore(self, snapshot: Any) -> None:
        """What a new process finds then."""


ALL_KEPT: Sequence[Kept] = get_args(Kept)
FORMATS = [
    *(f"{plain}{compression}" for plain in ("pairs", "labels", "jsonl") for compression in ("", ".gz", ".zst")),
    "parquet",
]


def name_of(row_format: str) -> str:
    """What an output of this format is called; skips the test where a package is absent."""
    if row_format.endswith((".zst", "parquet")):
        pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
    plain, _, compression = row_format.partition(".")
    extension = plain if plain in ("jsonl", "parquet") else "csv"
    return f"preds.{extension}.{compression}" if compression else f"preds.{extension}"


class FileHarness:
    keeps = ALL_KEPT

    def __init__(self, folder: Path, row_format: str = "pairs") -> None:
        self.name, self.row_format = name_of(row_format), row_format
        self.folder = folder / "out"
        self.folder.mkdir()
        self._snapshots = folder / "snapshots"
        self.path = self.folder / self.name

    def open(self, job: JobKey, policy: ResumePolicy) -> AbstractContextManager[Sink]:
        return open_sink(str(self.path), job, make_format(self.row_format), policy, lambda: None)

    def snapshot(self) -> Path:
        self._snapshots.mkdir(exist_ok=True)
        place = self._snapshots / str(len(list(self._snapshots.iterdir())))
        return Path(shutil.copytree(self.folder, place))

    def restore(self, snapshot: Path) -> None:
        """With bytes behind the last commit, as a power loss may leave them."""
        shutil.rmtree(self.folder)
        shutil.copytree(snapshot, self.folder)
        for path in self.folder.glob(f".{self.name}.*"):
            with path.open("ab") as file:
                file.write(b"torn")

    def output(self) -> tuple[list[tuple[bytes, list[int], list[float]]], Mapping[str, Any]] | None:
        if not self.path.exists():
            return None
        done = self.path.with_name(f"{self.name}.done.json")
        return read_rows(self.row_format, self.path.read_bytes()), json.loads(done.read_bytes())

    def unfinished(self) -> Sequence[str]:
        mine = {self.name, f"{self.name}.done.json", f"{self.name}.quarantine.jsonl"}
        return sorted(path.name for path in self.folder.iterdir() if path.name not in mine)


class NpyHarness(FileHarness):
    """A file with embeddings beside it, which must be the rows' own whenever there are any."""

    embeddings = "videos.npy"

    def open(self, job: JobKey, policy: ResumePolicy) -> AbstractContextManager[Sink]:
        own = embedding_output(str(self.folder / self.embeddings), WIDTH)
        return open_sink(str(self.path), job, make_format(self.row_format), policy, lambda: None, own)

    def restore(self, snapshot: Path) -> None:
        super().restore(snapshot)
        for path in self.folder.glob(f".{self.embeddings}.*"):
            with path.open("ab") as file:
                file.write(b"torn")

    def output(self) -> tuple[list[tuple[bytes, list[int], list[float]]], Mapping[str, Any]] | None:
        found = super().output()
        if found is not None:
            ids = [name for name, _, _ in found[0]]
            assert self.read(self.folder / self.embeddings, ids) == vectors(ids).tolist()
        return found

    def read(self, path: Path, ids: Sequence[bytes]) -> list[list[float]]:
        found = np.load(path)
        assert str(found.dtype) == "float32"
        numbers: list[list[float]] = found.tolist()
        return numbers

    def unfinished(self) -> Sequence[str]:
        return [name for name in super().unfinished() if name != self.embeddings]


class ParquetEmbeddingsHarness(NpyHarness):
    embeddings = "videos.parquet"

    def __init__(self, folder: Path) -> None:
        pytest.importorskip("pyarrow", reason="pyarrow is absent (extra parquet)")
        super().__init__(folder)

    def read(self, path: Path, ids: Sequence[bytes]) -> list[list[float]]:
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(path).to_pylist()
        assert [row["id"].encode() for row in rows] == ids
        return [row["embedding"] for row in rows]


class PartFileHarness(FileHarness):
    """A part file, which keeps what is beside the rows within them."""

    keeps: Sequence[Kept] = ()

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.name = "preds.csv.part-1-of-1"
        self.path = self.folder / self.name

    def open(self, job: JobKey, policy: ResumePolicy) -> AbstractContextManager[Sink]:
        stats = {shard.canonical: shard.stat for shard in job.shards}
        names = job.options["model"], "CPU", str(job.options.get("more"))
        options = Options(*names, top_k=K, on_error="skip", embeddings=WIDTH)
        facts = PartFacts(0, 1, job_digest(stats), "1", options, tuple(stats))
        return open_part_file(str(self.path), facts, stats, policy)

    def output(self) -> tuple[list[tuple[bytes, list[int], list[float]]], Mapping[str, Any]] | None:
        if not self.path.exists():
            return None
        part = PartFile.read(str(self.path))
        found = [row for chunk in part.chunks() for row in rows_of(chunk)]
        return found, {"scored": part.scored, "shards": [shard.to_json() for shard in part.shards]}


class PipeHarness:
    """A pipe, read when its writer is done: all fits into it."""

    keeps: Sequence[Kept] = ("ids",)

    def __init__(self, folder: Path, row_format: str = "pairs") -> None:
        self._pipe, self._format = folder / "pipe", row_format
        self._found: tuple[list[tuple[bytes, list[int], list[float]]], Mapping[str, Any]] | None = None
        os.mkfifo(self._pipe)

    @contextmanager
    def open(self, job: JobKey, policy: ResumePolicy) -> Iterator[Sink]:
        with open(os.open(self._pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
            with self._named() as name, open_sink(name, job, make_format(self._format), policy, lambda: None) as sink:
                yield sink
            if sink.completed is not None:
                self._found = read_rows(self._format, reader.read()), sink.completed

    def _named(self) -> AbstractContextManager[str]:
        """What the output is called."""
        return nullcontext(str(self._pipe))

    def output(self) -> tuple[list[tuple[bytes, list[int], list[float]]], Mapping[str, Any]] | None:
        return self._found

    def unfinished(self) -> Sequence[str]:
        return []


class StandardOutputHarness(PipeHarness):
    """Standard output, which is this pipe meanwhile."""

    @contextmanager
    def _named(self) -> Iterator[str]:
        before, pipe = os.dup(1), os.open(self._pipe, os.O_WRONLY)
        os.dup2(pipe, 1)
        os.close(pipe)
        try:
            yield "-"
        finally:
            os.dup2(before, 1)
            os.close(before)


class MemoryHarness:
    keeps: Sequence[Kept] = ()

    def __init__(self, folder: Path) -> None:
        self._sink = MemorySink(K)

    @contextmanager
    def open(self, job: JobKey, policy: ResumePolicy) -> Iterator[Sink]:
        yield self._sink

    def output(self) -> tuple[list[tuple[bytes, list[int], list[float]]], Mapping[str, Any]] | None:
        done = self._sink.completed
        return None if done is None else (rows_of(self._sink.joined()), done)

    def unfinished(self) -> Sequence[str]:
        return []


def rows_of(chunk: Chunk) -> list[tuple[bytes, list[int], list[float]]]:
    """Ids, labels and scores with six decimals."""
    scores = [[round(score, 6) for score in row] for row in chunk.scores.tolist()]
    return [*zip(chunk.ids.split(), chunk.labels.tolist(), scores, strict=True)]


class ObjectHarness:
    """An object of the S3 server at `url`, which s3:// means, or another scheme too."""

    keeps = ALL_KEPT

    def __init__(self, folder: Path, url: str, row_format: str = "pairs", scheme: str = "s3") -> None:
        self._client, self._snapshots = s3.client(url), folder / "snapshots"
        self._format = row_format
        self._key = f"{folder.name}/{name_of(row_format)}"
        self.address = f"{scheme}://{s3.BUCKET}/{self._key}"
        self._work = work_folder(self.address)

    def open(self, job: JobKey, policy: ResumePolicy) -> AbstractContextManager[Sink]:
        return open_sink(self.address, job, make_format(self._format), policy, lambda: None)

    def snapshot(self) -> Path:
        """Of the work: no crash of these tests lies within the sending."""
        self._snapshots.mkdir(exist_ok=True)
        return Path(shutil.copytree(self._work, self._snapshots / str(len(list(self._snapshots.iterdir())))))

    def restore(self, snapshot: Path) -> None:
        shutil.rmtree(self._work, ignore_errors=True)
        shutil.copytree(snapshot, self._work)

    def object(self, suffix: str = "") -> bytes | None:
        try:
            content: bytes = self._client.get_object(Bucket=s3.BUCKET, Key=self._key + suffix)["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return None
        return content

    def output(self) -> tuple[list[tuple[bytes, list[int], list[float]]], Mapping[str, Any]] | None:
        rows, record = self.object(), self.object(".done.json")
        if rows is None:
            return None
        assert record is not None
        return read_rows(self._format, rows), json.loads(record)

    def unfinished(self) -> Sequence[str]:
        uploads = self._client.list_multipart_uploads(Bucket=s3.BUCKET).get("Uploads", [])
        work = self._work.iterdir() if self._work.exists() else []
        return [*(path.name for path in work), *(upload["Key"] for upload in uploads)]


class ToyHarness:
    keeps = ALL_KEPT

    def __init__(self, folder: Path) -> None:
        self._name = f"toy://{folder}"

    def open(self, job: JobKey, policy: ResumePolicy) -> AbstractContextManager[Sink]:
        return open_sink(self._name, job, Pairs(), policy, lambda: None)

    def snapshot(self) -> Any:
        return copy.deepcopy((toy_sink.WORK.get(self._name), toy_sink.TABLES.get(self._name)))

    def restore(self, snapshot: Any) -> None:
        stores: list[dict[str, Any]] = [toy_sink.WORK, toy_sink.TABLES]
        for store, value in zip(stores, snapshot, strict=True):
            store.pop(self._name, None)
            if value is not None:
                store[self._name] = value

    def output(self) -> tuple[list[tuple[bytes, list[int], list[float]]], Mapping[str, Any]] | None:
        if (table := toy_sink.TABLES.get(self._name)) is None:
            return None
        found = [
            (name, labels.tolist(), scores.tolist())
            for group in table.groups
            for name, labels, scores in zip(group.ids, group.labels, group.scores, strict=True)
        ]
        return found, table.record

    def unfinished(self) -> Sequence[str]:
        return [name for name in toy_sink.WORK if name == self._name]


HARNESSES: dict[str, Callable[[Path], Harness]] = {
    **{f"file, {name}": partial(FileHarness, row_format=name) for name in FORMATS},
    "npy": NpyHarness,
    "parquet embeddings": ParquetEmbeddingsHarness,
    "part file": PartFileHarness,
    "toy": ToyHarness,
}
ONCE: dict[str, Callable[[Path], Once]] = {
    **{f"pipe, {name}": partial(PipeHarness, row_format=name) for name in ("pairs", "labels", "jsonl")},
    "standard output": StandardOutputHarness,
    "memory": MemoryHarness,
}
"""Outputs of which nothing can be resumed."""
OBJECTS = [("s3", "pairs"), ("s3", "labels.gz"), ("s3", "jsonl.zst"), ("s3", "parquet"), ("gs", "jsonl")]


def read_rows(row_format: str, content: bytes) -> list[tuple[bytes, list[int], list[float]]]:
    """The rows of an output as its users read them, scores with six decimals; a format without scores has the right."""
    plain, _, compression = row_format.partition(".")
    if plain == "parquet":
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(io.BytesIO(content)).to_pylist()
        return [(row["id"].encode(), row["labels"], [round(score, 6) for score in row["scores"]]) for row in table]
    lines = _decompressed(compression, content).splitlines(keepends=True)
    if plain == "jsonl":
        found = map(json.loads, lines)
        return [(row["id"].encode(), row["labels"], row["scores"]) for row in found]
    header = {"pairs": b"VideoId,LabelConfidencePairs\n", "labels": b"VideoId,Label\n"}
    assert lines[0] == header[plain]
    return [(_parsed if plain == "pairs" else _without_scores)(line) for line in lines[1:]]


def _decompressed(compression: str, content: bytes) -> bytes:
    if compression == "gz":
        return gzip.decompress(content)
    if compression == "zst":
        import pyarrow

        return bytes(pyarrow.CompressedInputStream(io.BytesIO(content), "zstd").read())
    return content


def _without_scores(line: bytes) -> tuple[bytes, list[int], list[float]]:
    name, labels = line.split(b",")
    return name, [int(label) for label in labels.split()], [round(score, 6) for score in row(int(name[1:]))[2]]


def _parsed(line: bytes) -> tuple[bytes, list[int], list[float]]:
    name, pairs = line.split(b",")
    numbers = pairs.split()
    return name, [int(label) for label in numbers[::2]], [float(score) for score in numbers[1::2]]
