"""Absent or complete: what a job writes stands beside its output file until all of it is there and safe.

For an output `preds.csv` its folder holds, while a job runs or waits to be resumed:

    .preds.csv.partial              the rows so far
    .preds.csv.quarantine           records quarantined so far, one JSON object a line
    .preds.csv.ids                  one 64-bit key per row, to count duplicate ids
    .preds.csv.hits                 where labels are known, what the metrics need of each row
    .preds.csv.journal              the job, then every commit, then the completion record (scorer/outputs/journal.py)
    .videos.npy.partial             where embeddings are asked for, those so far, beside the file that they become
    .preds.csv.packed               for a moment, where the format is packed in the end, the output made of the rows
    .preds.csv.lock                 who is at it (scorer/outputs/lock.py); gone when nobody is

and once it is done `preds.csv`, `preds.csv.done.json` and, where records were quarantined,
`preds.csv.quarantine.jsonl`; the file of embeddings takes its place before `preds.csv` does.

A commit flushes the growing files to the disk and only then appends a line with their lengths and CRC32Cs to the
journal, so the last whole line always describes bytes that are there; what stands behind them is cut off on resume.
Completion writes its record to the journal first. Each step after that may be repeated, so that resuming finishes a
job that was killed between any two of them.

CRCs tell damage, not malice. Whoever may write to the folder cannot make a job continue from files of theirs, since all
must belong to this user alone (scorer/outputs/own.py); more than that is the folder's permissions' business.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from scorer.errors import Hint, OutputError, ResumeError
from scorer.inputs.source import FileStat
from scorer.outputs.append import NO_BYTES, AppendFile, Extent, holds
from scorer.outputs.atomic import replace_bytes, sync_folder, writing
from scorer.outputs.journal import (
    APPEND_FILES,
    EMBEDDINGS,
    EMBEDDINGS_FILE,
    Journal,
    commit_line,
    complete_line,
    embeddings_line,
    job_line,
    packed_line,
    read_journal,
    sealed,
)
from scorer.outputs.lock import owned
from scorer.outputs.own import NotOwnError, check_own, open_own
from scorer.outputs.paths import OutputPaths
from scorer.outputs.row_format import Pack, RowFormat
from scorer.outputs.sink import Chunk, Commit, JobKey, Kept, ResumePolicy

if TYPE_CHECKING:
    from scorer.outputs.embeddings import EmbeddingOutput

Publish: TypeAlias = Callable[[OutputPaths, Mapping[Path, Path], bytes], None]
"""Puts an output elsewhere than in the folder of its work: files by what they are to be called, and the record.

May be repeated from the start after a crash. Raises OutputError.
"""


class FileSink:
    """A sink that is a file, from `open_file`. The attributes are those of `Sink`."""

    resumable = True

    def __init__(
        self,
        paths: OutputPaths,
        key: JobKey,
        row_format: RowFormat,
        publish: Publish | None = None,
        embeddings: EmbeddingOutput | None = None,
    ) -> None:
        self._publish, self._embeddings = publish, embeddings
        self._work: dict[str, Path] = {name: getattr(paths, name) for name in APPEND_FILES}
        if embeddings is not None:
            self._work[EMBEDDINGS] = embeddings.paths.rows
        self.last: Commit | None = None
        self.finished: list[tuple[FileStat, int]] = []
        self.completed: Mapping[str, Any] | None = None
        self._paths, self._key, self._format = paths, key, row_format
        self._files: dict[str, AppendFile] = {}
        self._committed: Mapping[str, Extent] = {}
        self._packed: Extent | None = None
        self._embedded: Extent | None = None
        self._keep, self._process = True, os.getpid()

    @property
    def quarantine_place(self) -> str:
        return f"in {self._paths.shown_quarantine}"

    @property
    def embeddings(self) -> tuple[str, Extent] | None:
        if self._embeddings is None or self._embedded is None:
            return None
        return self._embeddings.paths.final.name, self._embedded

    def append(self, chunk: Chunk) -> None:
        data = {
            "rows": chunk.rows(self._format),
            "quarantine": chunk.kept("quarantine"),
            "ids": chunk.kept("ids"),
            "hits": chunk.kept("hits"),
        }
        if self._embeddings is not None and chunk.embeddings is not None:
            data[EMBEDDINGS] = self._embeddings.format.rows(chunk.ids, chunk.embeddings)
        with self._writing():
            for name in data:
                self._files[name].append(data[name])

    def commit(self, commit: Commit) -> None:
        with self._writing():
            for name in self._work:
                self._files[name].sync()
            self._committed = {name: self._files[name].extent for name in self._work}
            self._record(commit_line(commit, self._committed))
        self.finished += commit.finished
        self.last, self._keep = commit, True

    def kept(self, what: Kept) -> AbstractContextManager[BinaryIO]:
        return self._kept(what)

    @contextmanager
    def _kept(self, what: str) -> Iterator[BinaryIO]:
        path = str(self._work[what])  # as text it is the file's name: what is made of it goes beside it
        with self._writing(), open(path, "rb", opener=lambda name, flags: open_own(Path(name), flags)) as file:
            yield file

    def seal(self) -> Extent:
        if self._embeddings is not None and self._embedded is None:
            with self._writing():
                self._embedded = self._seal_embeddings(self._embeddings)
                self._record(embeddings_line(self._embedded))
        if self._format.pack is None:
            return self._files["rows"].extent
        if self._packed is None:
            with self._writing():
                self._packed = self._pack("rows", self._format.pack, self._paths)
                self._record(packed_line(self._packed))
        return self._packed

    def complete(self, record: Mapping[str, Any]) -> None:
        """As `Sink` has it. Raises OutputError where what was committed is gone; then nothing was touched, and an older
        output stays as it was.
        """
        with self._writing():
            if self.completed is None:
                self.seal()
                self._record(complete_line(record))
            self.completed = record
            self._finish(record)

    def discard(self) -> None:
        self._keep = False

    def _pack(self, what: str, pack: Pack, paths: OutputPaths) -> Extent:
        path = paths.packed
        _remove(path)  # one that a crash left
        with self._kept(what) as kept, closing(AppendFile.new(path, _mode_of(paths.final))) as packed:
            pack(kept, packed.append)
            packed.sync()
        sync_folder(path.parent)
        return packed.extent

    def _seal_embeddings(self, embeddings: EmbeddingOutput) -> Extent:
        if embeddings.format.pack is not None:
            return self._pack(EMBEDDINGS, embeddings.format.pack, embeddings.paths)
        file, rows = self._files[EMBEDDINGS], self.last.scored if self.last else 0
        file.restart(embeddings.format.start(0), embeddings.format.start(rows))
        file.sync()
        return file.extent

    def start(self) -> None:
        """Begin from nothing: what an earlier run left is removed."""
        self._keep = False
        with self._writing():
            self._remove_work()
            mode = _mode_of(self._paths.final)
            for name, path in self._work.items():
                own = _mode_of(self._embeddings.paths.final) if self._embeddings and name == EMBEDDINGS else mode
                self._files[name] = AppendFile.new(path, own)
            self._files["journal"] = AppendFile.new(self._paths.journal, mode)
            self._begin()
            self._record(job_line(self._key))
            self._sync_folders()

    def _begin(self) -> None:
        """What stands before the first row."""
        self._files["rows"].append(self._format.header)
        if self._embeddings is not None:
            self._files[EMBEDDINGS].append(self._embeddings.format.start(0))

    def resume(self, journal: Journal) -> None:
        """Continue after the last commit that a run over the shards of today would have reached too.

        A finished shard that changed is refused. One that was only read in part may have been fixed or replaced: its
        records are scored again.

        Raises:
            ResumeError: another job, a changed shard or damaged files; the message names the difference.
        """
        self._check_same(journal)
        saved = journal.saved
        if journal.completed is None:
            self._check_finished(journal)
            if saved and self._has_other_partial(saved.commit):
                saved = journal.before
        self.last, self.completed = saved.commit if saved else None, journal.completed
        self.finished = journal.finished[: saved.commit.end.shard if saved else 0]
        self._committed = saved.files if saved else {}
        self._packed = journal.packed if journal.completed else None
        self._embedded = journal.embeddings if journal.completed else None
        with self._writing():
            if self.completed is None:
                self._reopen(saved.end if saved else journal.started)
            else:
                self._check_sealed()

    def _reopen(self, journal: Extent) -> None:
        for name, path in self._work.items():
            start = self._embeddings.format.start(0) if self._embeddings and name == EMBEDDINGS else b""
            self._files[name] = AppendFile.reopen(path, self._committed.get(name, NO_BYTES), start)
        self._files["journal"] = AppendFile.reopen(self._paths.journal, journal)
        if self.last is None:
            self._begin()

    def _check_sealed(self) -> None:
        """Of a job that came to its end: what still waits for its last rename is what was committed."""
        for source, _, extent in [*self._moves_of_embeddings(), *self._moves()]:
            if os.path.lexists(source):
                check_own(source)
                if not holds(source, extent):
                    reason = f"{source}: it is not what was committed"
                    raise ResumeError(reason, hints=(Hint.RESTART,))

    def close(self) -> None:
        """Let go of the files, and leave none behind that hold nothing; in a forked child they stay its parent's."""
        for file in self._files.values():
            with suppress(OSError):  # what counts was flushed before
                file.close()
        if not self._keep and self._process == os.getpid():
            with suppress(OSError):
                self._remove_work()

    def _check_same(self, journal: Journal) -> None:
        for name in {**journal.options, **self._key.options}:
            old, new = journal.options.get(name, "not stated"), self._key.options.get(name, "not known")
            if old != new:
                raise self._refused(f"{name} was {old} and is now {new}")
        shards = [shard.canonical for shard in self._key.shards]
        for index, (was, now) in enumerate(zip_longest(journal.shards, shards)):
            if was != now:
                raise self._refused(f"shard {index} was {was or 'not there'} and is now {now or 'not there'}")
        packed = journal.packed is not None or journal.completed is None or self._format.pack is None
        embedded = journal.embeddings is not None or journal.completed is None or self._embeddings is None
        if not (packed and embedded and journal.is_consistent()):
            raise self._refused(f"the lines of {self._paths.journal} do not belong together")

    def _check_finished(self, journal: Journal) -> None:
        for shard, (old, _) in zip(self._key.shards, journal.finished, strict=False):
            if shard.stat != old:
                raise self._refused(f"{shard.canonical} changed since it was scored, from {old} to {shard.stat}")

    def _has_other_partial(self, commit: Commit) -> bool:
        """Whether the shard that `commit` lies within has changed since."""
        return commit.partial is not None and commit.partial != self._key.shards[commit.end.shard].stat

    def _refused(self, difference: str) -> ResumeError:
        reason = f"{self._paths.shown} cannot be resumed: {difference}"
        return ResumeError(reason, remedy="restore that", hints=(Hint.RESTART,))

    def _finish(self, record: Mapping[str, Any]) -> None:
        """What completion does once its record is in the journal; may be repeated from the start after a crash."""
        paths, moves = self._paths, self._moves()
        embeddings = self._moves_of_embeddings()
        for move in [*embeddings, *moves]:
            _check_there(*move)
        content = json.dumps(record, indent=2).encode() + b"\n"
        if self._publish is not None:
            for move in embeddings:
                _move(*move)
            self._sync_folders()
            self._publish(paths, {target: source for source, target, _ in moves}, content)
        else:
            self._move_all([*embeddings, *moves], content)
        self._remove_work()
        sync_folder(paths.final.parent)

    def _move_all(self, moves: Sequence[tuple[Path, Path, Extent]], record: bytes) -> None:
        paths = self._paths
        _remove(paths.done)  # it describes an older file
        if not self._committed["quarantine"].length:
            _remove(paths.final_quarantine)
        for move in moves:
            _move(*move)
        self._sync_folders()
        replace_bytes(paths.done, record)
        sync_folder(paths.final.parent)  # or a power loss may keep the removals and lose the record

    def _moves(self) -> list[tuple[Path, Path, Extent]]:
        """From where to where, and what must be there: the quarantine, if anything is in it, and the rows."""
        paths, files = self._paths, self._committed
        moves = [(paths.rows, paths.final, files["rows"])]
        if self._packed is not None:
            moves = [(paths.packed, paths.final, self._packed)]
        if files["quarantine"].length:
            moves.insert(0, (paths.quarantine, paths.final_quarantine, files["quarantine"]))
        return moves

    def _moves_of_embeddings(self) -> list[tuple[Path, Path, Extent]]:
        """As `_moves`: those where there are some."""
        if self._embeddings is None or self._embedded is None:
            return []
        paths = self._embeddings.paths
        source = paths.rows if self._embeddings.format.pack is None else paths.packed
        return [(source, paths.final, self._embedded)]

    def _sync_folders(self) -> None:
        for folder in {path.parent for path in self._work.values()}:
            sync_folder(folder)

    def _record(self, entry: bytes) -> None:
        journal = self._files["journal"]
        journal.append(sealed(entry, journal.extent))
        journal.sync()

    def _remove_work(self) -> None:
        _remove(self._paths.journal)  # first: without it the others mean nothing
        for path in (*self._work.values(), self._paths.packed):
            _remove(path)
        if self._embeddings is not None:
            _remove(self._embeddings.paths.packed)

    def _writing(self) -> AbstractContextManager[None]:
        return writing(self._paths.shown, hints=(Hint.RESUME_LATER,) if self.last else ())


@contextmanager
def open_file(
    paths: OutputPaths,
    key: JobKey,
    row_format: RowFormat,
    policy: ResumePolicy,
    publish: Publish | None = None,
    embeddings: EmbeddingOutput | None = None,
) -> Iterator[FileSink]:
    """Lock the output, and the file of embeddings where there is to be one, then begin or resume.

    Raises:
        ResumeError: an unfinished run under "refuse", one of another job or of another user under "resume", or another
            process at work.
        OutputError: a file that cannot be made, written, flushed or renamed.
    """
    with ExitStack() as locks:
        locks.enter_context(owned(paths.lock, paths.shown))
        if embeddings is not None:
            locks.enter_context(owned(embeddings.paths.lock, embeddings.paths.shown))
            key = replace(key, options={**key.options, EMBEDDINGS_FILE: str(embeddings.paths.final)})
        sink = FileSink(paths, key, row_format, publish, embeddings)
        with closing(sink):
            journal = None if policy == "restart" else _unfinished(paths)
            if journal is None:
                sink.start()
            elif policy == "resume":
                with _own_work(paths):
                    sink.resume(journal)
            else:
                scored = journal.saved.commit.scored if journal.saved else 0
                reason = f"{paths.shown}: an earlier run stopped after {scored:,} videos"
                raise ResumeError(reason, hints=(Hint.RESUME, Hint.RESTART))
            yield sink


def _unfinished(paths: OutputPaths) -> Journal | None:
    """What an earlier run left; None where it committed nothing. Raises ResumeError for a damaged journal."""
    with _own_work(paths), writing(paths.shown), suppress(FileNotFoundError):
        journal = read_journal(paths.journal)
        return journal if journal.saved or journal.completed else None
    return None


@contextmanager
def _own_work(paths: OutputPaths) -> Iterator[None]:
    """Turn the error about a work file that is not this user's own into a ResumeError."""
    try:
        yield
    except OutputError as error:
        if not isinstance(error.__cause__, NotOwnError):
            raise
        reason = f"{paths.shown}: what an earlier run left cannot be trusted: {error.__cause__.strerror}"
        raise ResumeError(reason, hints=(Hint.RESTART,)) from None


def _mode_of(path: Path) -> int | None:
    """The permissions of the regular file at `path`, if there is one."""
    with suppress(FileNotFoundError):
        return stat.S_IMODE(os.lstat(path).st_mode)
    return None


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _move(source: Path, target: Path, extent: Extent) -> None:
    try:
        os.replace(source, target)
    except FileNotFoundError:
        _check_there(source, target, extent)


def _check_there(source: Path, target: Path, extent: Extent) -> None:
    """Refuse to continue unless the bytes of `extent` are at `source`, or at `target` since a crash after the move.

    Where `source` is there its length will do: its bytes were checked, or written, by who holds the lock.
    """
    try:
        there = os.lstat(source).st_size == extent.length
        check_own(source)
    except FileNotFoundError:  # a cleaner of temporary files may have taken it: only the bytes tell that from a move
        there = holds(target, extent)
    if not there:
        raise OutputError(
            f"{target}: its rows or records were in {source}, which was removed or changed meanwhile",
            remedy="use a folder that nothing cleans",
            hints=(Hint.RESTART,),
        )
