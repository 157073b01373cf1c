"""Batches that threads decode and work on side by side, in order: each thread its own range of the records.

Where records start is not known before those in front of them were read. So shards are cut at places that look like a
record's start, and a thread decodes what lies between two of them. What comes of that counts where the records before
it ended at the very place where it begins. Where they did not, as a record holds what looks like another or because
the shard is damaged, and where a range has more than a batch takes, the rest of the range is decoded in turn. So all is
as one decoder gives it, except for the number of videos in each batch.

Shards that are better opened ahead, and long ones whose records can only be read one after the other, are decoded in
turn, by the thread that takes a batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, groupby
from typing import Generic, TypeVar

from scorer.errors import Yt8mError
from scorer.inputs.batching import Batch, Batcher, BufferPool, MakeBuffer, ordinary_buffer
from scorer.inputs.position import BEGINNING, Place, Position
from scorer.inputs.readers import RecordReaders
from scorer.inputs.records import BLOCK_BYTES, Schema
from scorer.inputs.source import Source, opens_ahead
from scorer.pipeline.ordered import in_order
from scorer.system.signals import StopRequest

R = TypeVar("R")

WORTH_RANGES = 8 << 20
"""Bytes to read; fewer are decoded in turn, in milliseconds."""
_SHARES = 4  # of what is left are for each thread, so that all end together
_FULL = 0.99  # of its batches is what a range is to hold: its records may be shorter than those that were seen
_LESS = 0.9  # of their length is expected after a range that had more than a batch takes


@dataclass(frozen=True)
class Done(Generic[R]):
    """A batch, and what came of it."""

    batch: Batch
    result: R


@dataclass(frozen=True)
class _Range:
    """The records from `start` on that start before `stop`, about so many `batches`.

    Where `start` is a place that looked like a record's start, it has the number 0.
    """

    start: Position
    stop: Place
    batches: int = 1


@dataclass(frozen=True)
class _Attempt(Generic[R]):
    """What a thread made of a range: its first batches, as many as it was meant to hold or as could be read."""

    range: _Range
    done: list[Done[R]]


class RangeReader(Generic[R]):
    """Reads shards in `threads` threads, each of which also does `work` with the batches that it decoded.

    size: the most videos in a batch. skip: whether faults are put into `Batch.quarantined`, or raised.
    range_batches: how many batches a thread takes at once, fewer near the end; small ones share what a range costs.
    buffer: makes what features are decoded into, (size, width) each: at most `threads` + 1 of each are kept.
    """

    def __init__(
        self,
        shards: Sequence[Source],
        schema: Schema,
        size: int,
        work: Callable[[Batch], R],
        *,
        threads: int,
        skip: bool = False,
        range_batches: int = 1,
        buffer: MakeBuffer = ordinary_buffer,
        log: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._shards, self._schema, self._size, self._work = shards, schema, size, work
        self._threads, self._skip, self._log = threads, skip, log
        self._pool = BufferPool(schema, size, threads + 1, buffer)
        self._before = [*accumulate((shard.stat.size for shard in shards), initial=0)]  # bytes before each shard
        self._most_batches = range_batches
        self._own = threading.local()
        self._record_bytes = 4.0 * max(1, sum(schema.inputs.values()))  # few have less; later, what was seen last

    def read(
        self,
        start: Position = BEGINNING,
        max_in_flight: int | None = None,
        stop: StopRequest | None = None,
        coalesce: int = 1,
    ) -> Generator[list[Done[R]]]:
        """All batches from `start` on, in order; the other arguments are those of `in_order`.

        Raises InputError, what `in_order` and `work` raise, and, where faults are not skipped, ShardError or
        RecordError at the first of them; what comes before the batch of an error is given first.
        """
        at, most = start, max_in_flight or 2 * self._threads
        tasks = self._tasks(start)
        found = in_order(self._do, tasks, self._threads, most, stop, coalesce, self._log)
        with closing(self._pool), closing(found) as results:
            for some in results:
                at = yield from self._accepted(some, at)

    def _tasks(self, start: Position) -> Generator[_Range | Batch]:
        """What the threads are to do, made by one at a time: ranges to decode, or batches that are decoded already."""
        ranges = self._threads > 1 and self._bytes_between(start, (len(self._shards), 0)) >= WORTH_RANGES
        indices = range(start.shard, len(self._shards))
        for cut, some in groupby(indices, lambda index: ranges and not opens_ahead(self._shards[index])):
            group = [*some]
            yield from self._cut(group, start) if cut else self._in_turn(group, start)

    def _cut(self, indices: Sequence[int], start: Position) -> Generator[_Range | Batch]:
        """Shards in ranges, except for long ones that cannot be cut."""
        cutter = _Cutter(self._shards, start, self._range_size, RecordReaders(self._schema))
        for index in indices:
            if not (yield from cutter.take(index)):
                yield from self._in_turn([index], start)
        yield from cutter.rest(indices[-1] + 1)

    def _in_turn(self, indices: Sequence[int], start: Position) -> Generator[Batch]:
        """Batches of shards that are decoded one after the other."""
        first = start if indices[0] == start.shard else Position(indices[0], 0, 0)
        yield from self._batches(_Range(first, (indices[-1] + 1, 0)))

    def _do(self, task: _Range | Batch) -> Done[R] | _Attempt[R]:
        if isinstance(task, Batch):
            return self._worked(task)
        done: list[Done[R]] = []
        with closing(self._batches(task)) as batches:
            while len(done) < task.batches and (batch := _next(batches)) is not None:
                done.append(self._worked(batch))
        self._learn(task, [made.batch for made in done])
        return _Attempt(task, done)

    def _worked(self, batch: Batch) -> Done[R]:
        return Done(batch, self._work(batch))

    def _learn(self, task: _Range, batches: list[Batch]) -> None:
        """Expect records as long as these, or shorter ones where a range had more than it was meant to hold."""
        if records := sum(len(batch) + len(batch.quarantined) for batch in batches):
            end = batches[-1].end.place
            whole = end >= task.stop
            seen = self._bytes_between(batches[0].start, end) / records if whole else _LESS * self._record_bytes
            self._record_bytes = max(1, seen)

    def _batches(self, task: _Range) -> Generator[Batch]:
        """The records of a range, decoded in the calling thread."""
        batcher = Batcher(self._pool, self._readers, self._shards, task.start, skip=self._skip)
        yield from batcher.read(task.start, task.stop)
        yield from batcher.rest()

    def _accepted(self, some: list[Done[R] | _Attempt[R]], at: Position) -> Generator[list[Done[R]], None, Position]:
        """What counts of some results where all before them ended `at`, and what they lack; returns where they end."""
        ready: list[Done[R]] = []
        for made in some:
            ready += [made] if isinstance(made, Done) else self._true(made, at)
            at = ready[-1].batch.end if ready else at
            if isinstance(made, _Attempt) and at.place < made.range.stop:
                if ready:
                    yield ready
                ready = []
                for batch in self._batches(_Range(at, made.range.stop)):
                    at = batch.end
                    yield [self._worked(batch)]
        if ready:
            yield ready
        return at

    def _true(self, made: _Attempt[R], at: Position) -> list[Done[R]]:
        """What an attempt has if a record does start where it began, its records numbered as they are in the shard."""
        for done in made.done:
            batch = done.batch
            if batch.start.place != at.place:
                return []
            batch.count_from(at.record, self._shards[at.shard].address)
            at = batch.end
        return made.done

    @property
    def _readers(self) -> RecordReaders:
        """The calling thread's: they share buffers."""
        if not hasattr(self._own, "readers"):
            self._own.readers = RecordReaders(self._schema)
        readers: RecordReaders = self._own.readers
        return readers

    def _range_size(self, start: Position) -> tuple[int, int]:
        """How many batches a range from `start` on is to hold, fewer near the end, and how many bytes they may have."""
        left = self._bytes_between(start, (len(self._shards), 0))
        one = self._size * self._record_bytes
        batches = max(1, min(self._most_batches, int(left / (_SHARES * self._threads * one))))
        return batches, max(1, int(_FULL * batches * one - self._record_bytes / 2))

    def _bytes_between(self, start: Position, stop: Place) -> int:
        return self._before[stop[0]] + stop[1] - self._before[start.shard] - start.offset


def _next(batches: Generator[Batch]) -> Batch | None:
    """The next one, if there is one; an error is raised where it comes up in turn, if it does."""
    try:
        return next(batches, None)
    except Yt8mError:
        return None


class _Cutter:
    """Cuts shards that come one after the other, from `start` on, into ranges.

    size: how many batches a range that starts there holds, and how many bytes up to the record that ends it. readers:
    no other thread's.
    """

    def __init__(
        self,
        shards: Sequence[Source],
        start: Position,
        size: Callable[[Position], tuple[int, int]],
        readers: RecordReaders,
    ) -> None:
        self._shards, self._start, self._size, self._readers = shards, start, size, readers
        self._open: _Range | None = None  # the range that is not full; its `stop` is not known
        self._most = self._room = 0  # bytes that it may have, and may have yet

    def take(self, index: int) -> Generator[_Range, None, bool]:
        """Take a shard; yields the ranges that became full. False, and there is none left, where it is too long."""
        size = self._shards[index].stat.size
        first = self._start if index == self._start.shard else Position(index, 0, 0)
        began = self._open or self._begin(first)
        if size - first.offset > self._room:
            with self._finder(index) as find:
                if find is not None:
                    yield from self._cut(index, first.offset, size, find)
                    return True
            if began.start != first:
                yield from self.rest(index)
                self._begin(first)
            if size - first.offset > self._room:
                self._open = None
                return False
        self._room -= size - first.offset
        return True

    def rest(self, index: int, at: int = 0) -> Generator[_Range]:
        """The range that is not full, if there is one, up to byte `at` of a shard."""
        if self._open is not None:
            yield replace(self._open, stop=(index, at))
        self._open = None

    def _cut(self, index: int, at: int, size: int, find: Callable[[int, int], int | None]) -> Generator[_Range]:
        """The ranges that end in a shard, of which the bytes from `at` on come next."""
        end = at + self._room
        while size > end:
            if (found := find(end, size)) is None:
                end += max(self._most, BLOCK_BYTES)  # as far as was looked: no byte is searched twice
                continue
            yield from self.rest(index, found)
            self._begin(Position(index, 0, found))
            end = found + self._room
        self._room = min(end - size, self._most)

    def _begin(self, start: Position) -> _Range:
        batches, self._most = self._size(start)
        self._room = self._most
        self._open = _Range(start, (0, 0), batches)
        return self._open

    @contextmanager
    def _finder(self, index: int) -> Generator[Callable[[int, int], int | None] | None]:
        """`RecordReader.find_record` of a shard, which finds nothing where it cannot be read: that is seen in turn.

        None for a shard that can only be read from its beginning, or cannot be opened.
        """
        files, shard = self._readers.plain_files, self._shards[index]
        if files and files.find(shard, 0, 1) == 0:
            yield partial(files.find, shard)
            return
        try:
            reader = self._readers.open(shard)
        except Yt8mError:
            yield None
            return
        with closing(reader):
            yield reader.find_record and partial(_found, reader.find_record)


def _found(find: Callable[[int, int], int | None], offset: int, stop: int) -> int | None:
    try:
        return find(offset, stop)
    except Yt8mError:
        return None
