"""Absent or complete: what a job writes stands beside its output until all of it is there and safe.

For an output `preds.csv` its folder holds, while a job runs or waits to be resumed:

    .preds.csv.partial              the rows so far
    .preds.csv.quarantine           records set aside so far, one JSON object a line
    .preds.csv.ids                  one 64-bit key per row, to count duplicate ids
    .preds.csv.hits                 where labels are known, what the metrics need of each row
    .preds.csv.journal              the job, then every commit, then the completion record (scorer/outputs/journal.py)
    .preds.csv.lock                 who is at it (scorer/outputs/lock.py); gone when nobody is

and once it is done `preds.csv`, `preds.csv.done.json` and, where records were set aside, `preds.csv.quarantine.jsonl`.

A commit flushes the growing files to the disk and only then appends a line with their lengths and CRC32Cs to the
journal, so the last whole line always describes bytes that are there; what stands behind them is cut off on resume.
Completion writes its record to the journal first. Each step after that may be repeated, so that resuming finishes a
job that was killed between any two of them.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Literal

from scorer.errors import Hint, OutputError, ResumeError
from scorer.inputs.source import FileStat, Source
from scorer.outputs.atomic import LONGER, replace_bytes, sync_folder, writing
from scorer.outputs.journal import (
    APPEND_FILES,
    AppendFile,
    Checkpoint,
    Commit,
    entries,
    holds,
    job_line,
    line,
)
from scorer.outputs.lock import owned

STANDARD_OUTPUT = "-"

ResumePolicy = Literal["refuse", "resume", "restart"]


@dataclass(frozen=True)
class OutputPaths:
    """The files of one output, all in one folder; `final` is the path given, with symbolic links followed."""

    final: Path

    @property
    def rows(self) -> Path:
        return self._hidden("partial")

    @property
    def quarantine(self) -> Path:
        return self._hidden("quarantine")

    @property
    def ids(self) -> Path:
        return self._hidden("ids")

    @property
    def hits(self) -> Path:
        return self._hidden("hits")

    @property
    def journal(self) -> Path:
        return self._hidden("journal")

    @property
    def lock(self) -> Path:
        return self._hidden("lock")

    @property
    def final_quarantine(self) -> Path:
        return self.final.with_name(self.final.name + ".quarantine.jsonl")

    @property
    def done(self) -> Path:
        return self.final.with_name(self.final.name + ".done.json")

    def _hidden(self, kind: str) -> Path:
        return self.final.with_name(f".{self.final.name}.{kind}")


def places(output: str) -> OutputPaths | None:
    """Where the work on `output` goes; None for standard output ("-"), a device or a pipe, written straight through.

    Raises:
        OutputError: no name or too long a one, a folder, a path in no folder, or a loop of symbolic links.
    """
    if output == STANDARD_OUTPUT:
        return None
    if not output:
        raise OutputError("the output has no name", remedy="name a file, such as preds.csv")
    try:
        mode = os.stat(output).st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    except (OSError, ValueError) as error:
        raise OutputError(f"{output}: {error}", remedy="choose another output") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        return None
    final = Path(os.path.realpath(output))
    if stat.S_ISDIR(mode) or output.endswith(os.sep) or final.is_dir():  # the last: absent/.. is where it starts
        raise OutputError(f"{output} is a folder", remedy="name a file in it, such as preds.csv")
    if not final.parent.is_dir():
        raise OutputError(f"{output}: there is no folder {final.parent}", remedy="make it or choose another output")
    where = OutputPaths(final)
    _check_name(where)
    return where


def _check_name(where: OutputPaths) -> None:
    """Refuse at once a name that would be too long with what the last steps add to it."""
    try:
        limit = os.pathconf(where.final.parent, "PC_NAME_MAX")
    except (OSError, ValueError):  # unknown there
        return
    excess = len(os.fsencode(where.done.name)) + LONGER - limit  # no other file here has a longer name
    if limit >= 0 and excess > 0:
        most = len(os.fsencode(where.final.name)) - excess
        raise OutputError(f"{where.final}: the name is too long", remedy=f"choose one of at most {most} bytes")


class Output:
    """One job's hold on its output, from `opened`: append and commit, then complete.

    Attributes:
        last: the newest commit, which a resumed job goes on from; None before the first.
        finished: stamp and count of records of every finished shard, in input order.
        completed: the completion record once there is one; a resumed job may find it there.
    """

    def __init__(self, where: OutputPaths, options: Mapping[str, Any], shards: Sequence[Source]) -> None:
        self.where = where
        self.last: Commit | None = None
        self.finished: list[tuple[FileStat, int]] = []
        self.completed: Mapping[str, Any] | None = None
        self._options = dict(options)
        self._stats = [shard.stat for shard in shards]
        self._names = [shard.canonical for shard in shards]
        self._files: dict[str, AppendFile] = {}
        self._keep = True

    @property
    def rows(self) -> Checkpoint:
        """Length and CRC32C of the rows so far."""
        return self._files["rows"].mark

    def append(self, *, rows: bytes, quarantine: bytes = b"", ids: bytes = b"", hits: bytes = b"") -> None:
        """Add to the growing files; nothing of it counts before the next commit."""
        with writing(self.where.final):
            for name, data in zip(APPEND_FILES, (rows, quarantine, ids, hits), strict=True):
                self._files[name].append(data)

    @contextmanager
    def notes(self, name: str) -> Iterator[BinaryIO]:
        """The growing file `name`, to read."""
        with writing(self.where.final), open(getattr(self.where, name), "rb") as file:
            yield file

    def commit(self, commit: Commit) -> None:
        """Make everything appended so far survive a power loss; `commit.marks` are filled in here."""
        with writing(self.where.final):
            for name in APPEND_FILES:
                self._files[name].sync()
            commit = replace(commit, marks={name: self._files[name].mark for name in APPEND_FILES})
            self._note(line("commit", commit.to_json()))
        self.finished += commit.finished
        self.last, self._keep = commit, True

    def complete(self, record: Mapping[str, Any]) -> None:
        """Put the rows, all of them committed, under their final name, and `record` beside them."""
        with writing(self.where.final):
            self._note(line("complete", record))
        self.completed = record
        self.finish()

    def finish(self) -> None:
        """What completion does once its record is in the journal; may be repeated from the start after a crash.

        Raises:
            OutputError: what was committed is gone; then nothing was touched, and an older output stands as it was.
        """
        assert self.completed is not None
        assert self.last is not None
        moves = [(self.where.rows, self.where.final, self.last.marks["rows"])]
        if self.completed["quarantined"]:
            moves.insert(0, (self.where.quarantine, self.where.final_quarantine, self.last.marks["quarantine"]))
        with writing(self.where.final):
            for move in moves:
                _check_there(*move)
            _remove(self.where.done)  # it describes an older file
            if not self.completed["quarantined"]:
                _remove(self.where.final_quarantine)
            for move in moves:
                _move(*move)
            sync_folder(self.where.final.parent)
            replace_bytes(self.where.done, json.dumps(self.completed, indent=2).encode() + b"\n")
            sync_folder(self.where.final.parent)  # or a power loss may keep the removals and lose the record
            self._remove_work()
            sync_folder(self.where.final.parent)

    def start(self) -> None:
        """Begin from nothing: what an earlier run left is removed."""
        self._keep = False
        with writing(self.where.final):
            self._remove_work()
            self._open({}, Checkpoint())
            self._note(job_line(self._options, self._names))
            sync_folder(self.where.final.parent)

    def resume(self) -> None:
        """Go on from the last commit that a run over the shards of today would have reached too.

        A finished shard that changed is refused. One that was only begun may have been mended or replaced: its records
        are scored again.

        Raises:
            ResumeError: another job, a changed shard or damaged leftovers; the message names the difference.
        """
        with writing(self.where.final):
            self.last, end = self._last_valid()
            if self.completed is None:
                self._open(self.last.marks if self.last else {}, end)

    def close(self) -> None:
        """Let go of the files, and leave none behind that hold nothing."""
        for file in self._files.values():
            with suppress(OSError):  # what counts was flushed before
                file.close()
        if not self._keep:
            with suppress(OSError):
                self._remove_work()

    def _last_valid(self) -> tuple[Commit | None, Checkpoint]:
        """The commit to go on from, and the journal up to it."""
        last: Commit | None = None
        earlier: Commit | None = None  # the newest commit that lies before the shard which `last` lies within
        end = earlier_end = Checkpoint()
        for entry in entries(self.where.journal):
            if entry.key == "job":
                self._check_job(entry.value)
                earlier_end = entry.end
            elif entry.key == "complete":
                self.completed = entry.value
            else:
                commit = entry.value
                self.finished += commit.finished
                if last and (last.begun is None or last.end.shard < commit.end.shard):
                    earlier, earlier_end = last, end
                last = commit
            end = entry.end
        self._check_within(last)
        if self.completed is not None:
            return last, end
        self._check_finished()
        if last is None or last.begun is None or last.begun == self._stats[last.end.shard]:
            return last, end
        del self.finished[earlier.end.shard if earlier else 0 :]
        return earlier, earlier_end

    def _check_job(self, job: Mapping[str, Any]) -> None:
        for key, old in job["options"].items():
            if old != self._options.get(key):
                raise self._refused(f"{key} was {old} and is now {self._options.get(key)}")
        for index, (old, new) in enumerate(zip_longest(job["shards"], self._names)):
            if old != new:
                raise self._refused(f"shard {index} was {old or 'not there'} and is now {new or 'not there'}")

    def _check_within(self, last: Commit | None) -> None:
        """Refuse a journal whose lines are each whole but do not belong together."""
        if last and last.end.shard + (last.begun is not None) > len(self._names):
            raise self._refused(f"the lines of {self.where.journal} do not belong together")

    def _check_finished(self) -> None:
        for name, new, (old, _) in zip(self._names, self._stats, self.finished, strict=False):
            if new != old:
                raise self._refused(f"{name} changed since it was scored, from {old} to {new}")

    def _refused(self, difference: str) -> ResumeError:
        return ResumeError(
            f"{self.where.final} cannot be resumed: {difference}",
            remedy="restore that",
            hints=(Hint.RESTART,),
        )

    def _open(self, marks: Mapping[str, Checkpoint], journal: Checkpoint) -> None:
        for name in APPEND_FILES:
            self._files[name] = AppendFile(getattr(self.where, name), marks.get(name, Checkpoint()))
        self._files["journal"] = AppendFile(self.where.journal, journal)

    def _note(self, entry: bytes) -> None:
        self._files["journal"].append(entry)
        self._files["journal"].sync()

    def _remove_work(self) -> None:
        _remove(self.where.journal)  # first: without it the others mean nothing
        for name in APPEND_FILES:
            _remove(getattr(self.where, name))


@contextmanager
def opened(
    where: OutputPaths, options: Mapping[str, Any], shards: Sequence[Source], leftovers: ResumePolicy
) -> Iterator[Output]:
    """Lock the output, then begin or go on.

    Args:
        where: the output's files.
        options: what decides the bytes of the rows, key by key; a resumed job must match it.
        shards: in input order.
        leftovers: what to do about an unfinished earlier run. One that committed nothing is no obstacle.

    Raises:
        ResumeError: leftovers under "refuse", leftovers of another job under "resume", or another process at work.
        OutputError: a file that cannot be made, written, flushed or renamed.
    """
    with owned(where.lock, str(where.final)):
        output = Output(where, options, shards)
        with closing(output):
            left = None if leftovers == "restart" else unfinished(where)
            if left is None:
                output.start()
            elif leftovers == "resume":
                output.resume()
            else:
                raise ResumeError(
                    f"{where.final}: an earlier run stopped after {left}",
                    hints=(Hint.RESUME, Hint.RESTART),
                )
            yield output


def unfinished(where: OutputPaths) -> str | None:
    """What an earlier run committed before it stopped, in words; None where that is nothing.

    Raises:
        ResumeError: a damaged journal.
    """
    scored = None
    with writing(where.final), suppress(FileNotFoundError):
        for entry in entries(where.journal):
            if entry.key == "commit":
                scored = f"{entry.value.scored:,} videos"
    return scored


def _remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _move(source: Path, target: Path, mark: Checkpoint) -> None:
    try:
        os.replace(source, target)
    except FileNotFoundError:
        _check_there(source, target, mark)


def _check_there(source: Path, target: Path, mark: Checkpoint) -> None:
    """Refuse to go on unless the bytes of `mark` are at `source`, or at `target` since a crash after the move.

    Where `source` is there its length will do: its bytes were checked, or written, by who holds the lock.
    """
    try:
        there = os.lstat(source).st_size == mark.length
    except FileNotFoundError:  # a cleaner of temporary files may have taken it: only the bytes tell that from a move
        there = holds(target, mark)
    if not there:
        raise OutputError(
            f"{target}: its rows or records were in {source}, which was removed or changed meanwhile",
            remedy="use a folder that nothing cleans",
            hints=(Hint.RESTART,),
        )
