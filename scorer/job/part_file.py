"""A part's predictions in a file: absent or complete, and resumable while it is made.

For a part file `NAME` its folder holds `.NAME.partial` while the part runs or waits to be resumed, and `.NAME.lock`.
Both forms are one line that says what the file is, then frames, of which each is a byte for its kind, the length of
its payload (8 bytes), the payload, and a CRC32C of all that:

    P   what the part is, in JSON (PartFacts)
    C   a chunk of predictions (scorer/job/chunks.py)
    M   a commit: all before it is on the disk and counts. Resuming cuts off what stands behind the last one
    E   the end, in JSON: the shards, each with its records, and how many of all were scored; the last 8 bytes of the
        file say where this frame begins

Predictions and not rows are kept, so that parts merge into an output of any kind.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from scorer.errors import Hint, InputError, OutputError, ResumeError
from scorer.inputs.position import BEGINNING, Position
from scorer.inputs.source import FileStat
from scorer.job.chunks import MALFORMED, check_arrays, chunk_from_bytes, chunk_to_bytes
from scorer.job.part import difference
from scorer.job.record import Options, ShardRecord
from scorer.kernels import loops
from scorer.outputs.append import NO_BYTES, AppendFile, Extent
from scorer.outputs.atomic import sync_folder, writing
from scorer.outputs.lock import owned
from scorer.outputs.own import open_own
from scorer.outputs.paths import OutputPaths, output_paths
from scorer.outputs.sink import Chunk, Commit, Kept, ResumePolicy
from scorer.outputs.typed import count_of, stat_of, text_of

_MAGIC = b"yt8m-edge part 1\n"
_HEAD, _CRC, _WHERE = struct.Struct("<cQ"), struct.Struct("<I"), struct.Struct("<Q")
_LONGEST = 1 << 32  # of a frame; a forged length must not fill the memory


@dataclass(frozen=True)
class PartFacts:
    """What a part is, and what made it.

    addresses: canonical ones of its shards. version: of this package. names: of the labels, as `Job` has them.
    """

    index: int
    count: int
    job: str
    version: str
    options: Options
    addresses: tuple[str, ...]
    names: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return f"part {self.index + 1} of {self.count}"

    def to_json(self) -> dict[str, Any]:
        return {
            "index": self.index,
            "count": self.count,
            "job": self.job,
            "version": self.version,
            "options": self.options.to_json(),
            "shards": [*self.addresses],
            "names": self.names and [*self.names],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PartFacts:
        facts = cls(
            index=count_of(value["index"]),
            count=count_of(value["count"]),
            job=text_of(value["job"]),
            version=text_of(value["version"]),
            options=Options.from_json(value["options"]),
            addresses=tuple(map(text_of, value["shards"])),
            names=None if value["names"] is None else tuple(map(text_of, value["names"])),
        )
        if facts.index >= facts.count:
            raise ValueError("its numbers do not belong together")
        return facts


def part_path(output: str, index: int, count: int) -> str:
    """Where part `index` of `count` of the job that writes `output` goes; names sort as parts do."""
    return f"{output}.part-{index + 1:0{len(str(count))}}-of-{count}"


class PartFileSink:
    """The `Sink` that is a part file, from `open_part_file`."""

    resumable = True
    embeddings = None  # within its chunks

    def __init__(self, paths: OutputPaths, facts: PartFacts) -> None:
        self.quarantine_place = f"in {paths.final}"
        self.last: Commit | None = None
        self.finished: list[tuple[FileStat, int]] = []
        self.completed: Mapping[str, Any] | None = None
        self._paths, self._facts, self._process = paths, facts, os.getpid()
        self._file: AppendFile | None = None

    def append(self, chunk: Chunk) -> None:
        self._add(b"C", chunk_to_bytes(chunk))

    def commit(self, commit: Commit) -> None:
        """Twice to the disk: what counts before what says so."""
        with self._writing():
            self._opened.sync()
        self._add(b"M", _dumped(_commit_json(commit)))
        with self._writing():
            self._opened.sync()
        self.finished += commit.finished
        self.last = commit

    def kept(self, what: Kept) -> AbstractContextManager[BinaryIO]:
        """Nothing: metrics and duplicates are counted by who merges the parts."""
        return open(os.devnull, "rb")

    def seal(self) -> Extent:
        return self._opened.extent

    def complete(self, record: Mapping[str, Any]) -> None:
        if self.completed is None:
            where = self._opened.extent.length
            self._add(b"E", _dumped(record), _WHERE.pack(where))
        self.completed = record
        with self._writing():
            self._opened.sync()
            os.replace(self._paths.rows, self._paths.final)
            sync_folder(self._paths.final.parent)

    def discard(self) -> None:
        self.last = None

    def start(self) -> None:
        """Begin from nothing: what an earlier run left is removed."""
        with self._writing():
            with suppress(FileNotFoundError):
                os.unlink(self._paths.rows)
            self._file = AppendFile.new(self._paths.rows)
            self._file.append(_MAGIC)
            sync_folder(self._paths.rows.parent)
        self._add(b"P", _dumped(self._facts.to_json()))

    def resume(self, left: _Left, stats: Mapping[str, FileStat]) -> None:
        """Continue after the last commit that a run over the shards of today, with `stats`, would have reached too."""
        if left.facts.addresses != self._facts.addresses or left.facts.job != self._facts.job:
            raise self._refused("it was of other shards")
        if left.facts.options != self._facts.options:
            raise self._refused(difference(self._facts.options, left.facts.options))
        if left.facts != self._facts:
            raise self._refused("the version or the names of labels were others")
        now = [stats[address] for address in left.facts.addresses]
        for address, (old, _), stat in zip(left.facts.addresses, left.finished, now, strict=False):
            if old != stat:
                raise self._refused(f"{address} changed since it was scored")
        commit, extent = left.newest
        if commit.partial not in (None, *now[commit.end.shard : commit.end.shard + 1]):
            commit, extent = left.whole
            if extent == NO_BYTES:
                return self.start()
        self.last, self.completed = commit, left.completed
        self.finished = left.finished[: commit.end.shard]
        with self._writing():
            self._file = AppendFile.reopen(self._paths.rows, extent)

    def close(self) -> None:
        """Let go of the file, and leave none behind that holds nothing; one that was refused stays as it is, and in a
        forked child it stays its parent's.
        """
        if self._file is None:
            return
        with suppress(OSError):
            self._file.close()
        if self.last is None and self._process == os.getpid():
            with suppress(OSError):
                os.unlink(self._paths.rows)

    @property
    def _opened(self) -> AppendFile:
        assert self._file is not None
        return self._file

    def _add(self, kind: bytes, payload: bytes, after: bytes = b"") -> None:
        with self._writing():
            self._opened.append(_framed(kind, payload) + after)

    def _refused(self, why: str) -> ResumeError:
        return ResumeError(
            f"{self._paths.final} cannot be resumed: {why}", remedy="restore that", hints=(Hint.RESTART,)
        )

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self._paths.final, hints=(Hint.RESUME_LATER,) if self.last else ())


@contextmanager
def open_part_file(
    path: str, facts: PartFacts, stats: Mapping[str, FileStat], policy: ResumePolicy
) -> Iterator[PartFileSink]:
    """Lock the part file, then begin or resume; `stats` are those of the shards today, by canonical address.

    Raises ResumeError and OutputError as `scorer.outputs.file.open_file` does.
    """
    paths = output_paths(path)
    if paths is None:
        raise OutputError(f"{path} is no file, and a part has to be one", remedy="name a file")
    with owned(paths.lock, str(paths.final)), closing(PartFileSink(paths, facts)) as sink:
        left = None if policy == "restart" else _unfinished(paths)
        if left is None:
            sink.start()
        elif policy == "resume":
            sink.resume(left, stats)
        else:
            raise _stopped(paths, left)
        yield sink


def refuse_unfinished(path: str) -> None:
    """Raise ResumeError where an earlier run left the part file at `path` unfinished, and something is committed."""
    paths = output_paths(path)
    if paths is not None and (left := _unfinished(paths)) is not None:
        raise _stopped(paths, left)


def _stopped(paths: OutputPaths, left: _Left) -> ResumeError:
    reason = f"{paths.final}: an earlier run stopped after {left.newest[0].scored:,} videos"
    return ResumeError(reason, hints=(Hint.RESUME, Hint.RESTART))


def begun_part(places: Sequence[str]) -> PartFacts | None:
    """What the first unfinished part at `places` is, else the first finished one; None where none can be read."""
    found = [paths for place in places if (paths := output_paths(place)) is not None]
    files = [*(paths.rows for paths in found), *(paths.final for paths in found)]
    return next(filter(None, map(_facts_in, files)), None)


def _facts_in(path: Path) -> PartFacts | None:
    try:
        with open(_own(path), "rb") as file:
            begun = _beginning(file)
    except (OSError, *MALFORMED):
        return None
    return begun and begun[0]


@dataclass
class _Left:
    """What an unfinished run left. newest: its last commit, and how far the file counts there; whole: the last that
    lies before the shard which the newest lies within. finished: shards of all commits.
    """

    facts: PartFacts
    newest: tuple[Commit, Extent]
    whole: tuple[Commit, Extent]
    finished: list[tuple[FileStat, int]]
    completed: Mapping[str, Any] | None = None

    def add(self, commit: Commit, extent: Extent) -> None:
        old = self.newest[0]
        if old.partial is None or old.end.shard < commit.end.shard:
            self.whole = self.newest
        self.newest = commit, extent
        self.finished += commit.finished


def _unfinished(paths: OutputPaths) -> _Left | None:
    """What stands in the partial file; None where nothing was committed. What follows its last whole frame is torn."""
    with writing(paths.final), suppress(FileNotFoundError), open(_own(paths.rows), "rb") as file:
        try:
            return _read_left(file)
        except MALFORMED as error:
            reason = f"{paths.final} cannot be resumed: {paths.rows} is damaged ({error})"
            raise ResumeError(reason, hints=(Hint.RESTART,)) from error
    return None


def _own(path: Path) -> int:
    return open_own(path, os.O_RDONLY)


def _read_left(file: BinaryIO) -> _Left | None:
    if (begun := _beginning(file)) is None:
        return None
    left, (facts, counts) = None, begun
    while (found := _frame(file)) is not None:
        kind, payload = found
        where, counts = _WHERE.pack(counts.length), counts.add(_framed(kind, payload))
        if kind == b"M":
            left = left or _Left(facts, (Commit(BEGINNING), NO_BYTES), (Commit(BEGINNING), NO_BYTES), [])
            left.add(_commit(json.loads(payload)), counts)
        elif kind == b"E" and left is not None and file.read(_WHERE.size) == where:  # else torn: it is written again
            counts = counts.add(where)
            left.completed, left.newest = json.loads(payload), (left.newest[0], counts)
    return left


def _beginning(file: BinaryIO) -> tuple[PartFacts, Extent] | None:
    """What the part is, and how far the file goes where it has said so; None where it says no such thing."""
    if file.read(len(_MAGIC)) != _MAGIC or (first := _frame(file)) is None or first[0] != b"P":
        return None
    return PartFacts.from_json(json.loads(first[1])), NO_BYTES.add(_MAGIC + _framed(*first))


def _framed(kind: bytes, payload: bytes) -> bytes:
    head = _HEAD.pack(kind, len(payload))
    return b"".join((head, payload, _CRC.pack(_crc(head, payload))))


def _crc(head: bytes, payload: bytes) -> int:
    return loops.active.crc32c(payload, loops.active.crc32c(head))


def _frame(file: BinaryIO) -> tuple[bytes, bytes] | None:
    """The next frame; None at the end, where it is torn, and where it is damaged."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    kind, length = _HEAD.unpack(head)
    if length > min(_LONGEST, os.fstat(file.fileno()).st_size - file.tell()):
        return None
    payload, crc = file.read(length), file.read(_CRC.size)
    return (kind, payload) if crc == _CRC.pack(_crc(head, payload)) else None


@dataclass(frozen=True)
class PartFile:
    """A complete part file; a `MadePart` (scorer/job/part.py)."""

    path: str
    facts: PartFacts
    shards: tuple[ShardRecord, ...]
    scored: int

    @property
    def quarantined(self) -> int:
        return sum(shard.records for shard in self.shards) - self.scored

    @classmethod
    def read(cls, path: str) -> PartFile:
        """What stands in the file at `path`, its predictions left out. Raises InputError where it is no whole part."""
        try:
            with open(path, "rb") as file:
                return cls(path, *_read_ends(file))
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}", remedy="check the path") from None
        except MALFORMED as error:
            raise InputError(f"{path} is no part, or a damaged one ({error})", remedy="run that part again") from error

    @property
    def index(self) -> int:
        return self.facts.index

    @property
    def count(self) -> int:
        return self.facts.count

    @property
    def job(self) -> str:
        return self.facts.job

    @property
    def options(self) -> Options:
        return self.facts.options

    def chunks(self) -> Iterator[Chunk]:
        """Its predictions in order. Raises InputError where they are damaged."""
        try:
            yield from self._chunks()
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from None
        except MALFORMED as error:
            reason = f"{self.path} is damaged ({error})"
            raise InputError(reason, remedy="run that part again") from error

    def _chunks(self) -> Iterator[Chunk]:
        done = _Counted(self.shards)
        with open(self.path, "rb") as file:
            file.seek(len(_MAGIC))
            while (found := _frame(file)) is not None:
                kind, payload = found
                if kind == b"E":
                    break
                if kind == b"C":
                    chunk = chunk_from_bytes(payload)
                    check_arrays(chunk, self.options)
                    if self.facts.names is not None and chunk.labels.max(initial=0) >= len(self.facts.names):
                        raise ValueError("a chunk has other labels")
                    done.add(chunk)
                    yield chunk
        if (done.shards, done.scored) != (len(self.shards), self.scored):
            raise ValueError("frames are missing")


@dataclass
class _Counted:
    """Holds what chunks say of shards and records against the shards that the part has.

    shards, scored: those so far.
    read: records of the shard in hand.
    """

    expected: tuple[ShardRecord, ...]
    shards: int = 0
    scored: int = 0
    read: int = 0

    def add(self, chunk: Chunk) -> None:
        """Count one more. Raises ValueError where it is not the next one."""
        self.scored += len(chunk)
        self.read += len(chunk) + len(chunk.quarantined)
        for index, records in chunk.finished:
            if index != self.shards or index >= len(self.expected) or records != self.expected[index].records:
                raise ValueError("a chunk has other shards")
            self.shards, self.read = self.shards + 1, self.read - records
        if (chunk.end.shard, chunk.end.record) != (self.shards, self.read):
            raise ValueError("the counts of a chunk do not agree")


def _read_ends(file: BinaryIO) -> tuple[PartFacts, tuple[ShardRecord, ...], int]:
    if (begun := _beginning(file)) is None:
        raise ValueError("it begins otherwise")
    end = os.fstat(file.fileno()).st_size - _WHERE.size
    file.seek(max(0, end))
    where = int.from_bytes(file.read(_WHERE.size), "little")
    file.seek(min(where, max(0, end)))
    last = _frame(file)
    if last is None or last[0] != b"E":
        raise ValueError("it is not whole")
    facts, end_record = begun[0], json.loads(last[1])
    shards = tuple(map(ShardRecord.from_json, end_record["shards"]))
    if tuple(shard.canonical for shard in shards) != facts.addresses:
        raise ValueError("it has other shards than it says")
    return facts, shards, count_of(end_record["scored"])


def _dumped(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _commit_json(commit: Commit) -> dict[str, Any]:
    return {
        "end": [commit.end.shard, commit.end.record, commit.end.offset],
        "scored": commit.scored,
        "quarantined": commit.quarantined,
        "bytes_lost": commit.bytes_lost,
        "finished": [[stat.size, stat.version, records] for stat, records in commit.finished],
        "partial": commit.partial and [commit.partial.size, commit.partial.version],
        "unknown_labels": commit.unknown_labels,
    }


def _commit(entry: Mapping[str, Any]) -> Commit:
    partial = entry["partial"]
    return Commit(
        end=Position(*map(count_of, entry["end"])),
        scored=count_of(entry["scored"]),
        quarantined=count_of(entry["quarantined"]),
        bytes_lost=count_of(entry["bytes_lost"]),
        finished=tuple((stat_of(size, version), count_of(records)) for size, version, records in entry["finished"]),
        partial=None if partial is None else stat_of(*partial),
        unknown_labels=count_of(entry["unknown_labels"]),
    )
