"""Shards to batches: rows in input order, across shard borders, in reused buffers, so that memory stays flat."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby, islice
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import RecordError, ShardError
from scorer.inputs.plain_files import PlainFiles, PlainRun
from scorer.inputs.position import BEGINNING, Place, Position
from scorer.inputs.readers import RecordReaders
from scorer.inputs.records import DecodedBlock, DecodedRun, RecordReader, Rows, Schema, Target
from scorer.inputs.source import UNKNOWN_SIZE, Source, opens_ahead
from scorer.kernels.packed import PackedStrings, RowSizes, unpack_varints

MAX_QUARANTINED = 1000
"""A batch ends when it has met so many bad records, so that a shard of nothing else keeps memory flat too."""
BATCH_LABEL_BYTES = 1 << 20
"""A batch ends when it holds so many bytes of labels, for the same reason."""
_DEPTH = 3  # buffers that `batches` keeps

MakeBuffer: TypeAlias = Callable[[tuple[int, int]], NDArray[np.float32]]
"""Makes an array of that shape for one feature, of any values."""


@dataclass(frozen=True)
class Quarantined:
    """A bad record, left out of the batches.

    bytes_lost: 0, or how many bytes of the shard went with it because nothing after it can be found. However many
    records those bytes held, they count as this one.
    """

    path: str
    record: int
    offset: int
    reason: str
    bytes_lost: int


def ordinary_buffer(shape: tuple[int, int]) -> NDArray[np.float32]:
    return np.empty(shape, np.float32)


class Batch:
    """Up to `size` videos.

    features: float32 (n, width) by name, valid until the last of its users releases it.
    ids: n ids, UTF-8 bytes.
    label_values, label_splits: int64 CSR, row i = values[splits[i]:splits[i + 1]].
    labelled: whether any record of the batch had a `labels` feature; labelled_rows: bool (n,), which ones had.
    start: its first record. end: where a resumed run continues after this batch.
    quarantined: bad records met while this batch was filled (on_error="skip").
    label_faults: what is wrong with the labels of videos that are here without them, up to MAX_QUARANTINED.
    consumed: of the compressed shard in which `end` is, the bytes read by then; None of another.
    unread_frames: whether some are of a shard that has frames too, beside their means.
    finished: (shard index, records read there in all: good ones and quarantined ones) of shards that ended here.

    A batch has fewer than `size` videos, perhaps none, at the end of the input, after MAX_QUARANTINED bad
    records and with BATCH_LABEL_BYTES of labels.
    """

    def __init__(self, pool: BufferPool, start: Position) -> None:
        self._pool = pool
        self._count = 0
        self._users, self._users_lock = 1, threading.Lock()
        self._ids: list[bytes] = []  # one string a block
        self._labels: list[bytes] = []
        self._sizes = RowSizes(pool.size)  # without compiled loops the last one is not used
        self._label_bytes = 0
        self.labelled = False
        self.start = self.end = start
        self.quarantined: list[Quarantined] = []
        self.label_faults: list[ShardError | RecordError] = []
        self.unread_frames = False
        self.consumed: int | None = None
        self.finished: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return self._count

    @cached_property
    def _buffers(self) -> dict[str, NDArray[np.float32]]:
        """Taken when the first row comes, so that a thread fills those that it has just released."""
        return self._pool.acquire()

    @cached_property
    def ids(self) -> list[bytes]:
        return packed([self])[0].split()

    @property
    def features(self) -> dict[str, NDArray[np.float32]]:
        return {name: buffer[: len(self)] for name, buffer in self._buffers.items()}

    @property
    def labelled_rows(self) -> NDArray[np.bool_]:
        return self._sizes.labelled[: len(self)].astype(bool)

    @property
    def label_values(self) -> NDArray[np.int64]:
        return self._unpacked[0]

    @property
    def label_splits(self) -> NDArray[np.int64]:
        return self._unpacked[1]

    @cached_property
    def _unpacked(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return unpack_varints(packed([self])[1])

    def retain(self) -> None:
        """Add a user of `features`, who is to call release() too."""
        with self._users_lock:
            self._users += 1

    def release(self) -> None:
        """One user of `features` is done with them; the last one gives the buffers back, if there are any."""
        with self._users_lock:
            self._users -= 1
            last = self._users == 0
        if last and "_buffers" in vars(self):
            self._pool.release(self._buffers)

    @property
    def room(self) -> int:
        """How many more rows go in; 0 too when there are enough bad records or labels."""
        full = self._label_bytes >= BATCH_LABEL_BYTES
        return 0 if full else min(self._pool.size - self._count, MAX_QUARANTINED - len(self.quarantined))

    def append(self, records: Rows, first: int, last: int) -> bool:
        """Append the rows first..last-1 of `records`, for which there is room; False if some of them prove bad."""
        here, count = self._count, last - first
        if not records.copy(first, last, [buffer[here : here + count] for buffer in self._buffers.values()]):
            return False
        ids, sizes = PackedStrings.of(records.ids[first:last]), records.label_sizes
        start, stop = int(sizes[:first].sum()), int(sizes[:last].sum())
        self._sizes.matrix[:3, here : here + count] = ids.sizes, sizes[first:last], records.labelled[first:last]
        self._add(count, ids.data, records.labels[start:stop].tobytes())
        self.labelled = self.labelled or bool(records.labelled[first:last].any())
        return True

    def decode(self, reader: RecordReader, position: Position, stop: int) -> DecodedRun:
        """Append the records from `position` on that start before byte `stop`, leaving out bad ones; returns what
        `reader` decoded.
        """
        here = self._count
        run = reader.decode_into(position, self._target(stop))
        if run.bad:
            good = np.delete(np.arange(here, here + run.records), [*run.bad])
            for values in (*self._buffers.values(), *self._sizes.matrix):
                values[here : here + len(good)] = values[good]
        self._add(run.records - len(run.bad), run.ids, run.labels)
        self.labelled = self.labelled or run.labelled
        self.unread_frames = self.unread_frames or run.unread_frames
        return run

    def decode_plain(
        self, files: PlainFiles, shards: Sequence[Source], position: Position, stop: Place
    ) -> PlainRun | None:
        """Append the records from `position` on that start before `stop`, as far as they are plain; returns what
        `files` decoded.
        """
        run = files.decode(shards, position, stop, self._target(stop[1]))
        if run is not None:
            self._add(run.records, run.ids, run.labels)
            self.labelled = self.labelled or run.labelled
            self.finished += run.finished
            self.end, self.consumed = run.end, None
        return run

    def _target(self, stop: int) -> Target:
        here, label_bytes = self._count, BATCH_LABEL_BYTES - self._label_bytes
        return Target([*self._buffers.values()], self._sizes, here, here + self.room, label_bytes, stop)

    def add_label_faults(self, faults: Iterable[ShardError | RecordError]) -> None:
        self.label_faults += islice(faults, MAX_QUARANTINED - len(self.label_faults))

    def count_from(self, record: int, address: str) -> None:
        """Renumber the records of the first shard, which has this address: the first one has the number `record`."""
        first, by = self.start.shard, record - self.start.record
        self.quarantined = [replace(bad, record=bad.record + by * (bad.path == address)) for bad in self.quarantined]
        self.label_faults = [fault.moved(by * (fault.path == address)) for fault in self.label_faults]
        self.finished = [(index, records + by * (index == first)) for index, records in self.finished]
        self.end = replace(self.end, record=self.end.record + by * (self.end.shard == first))
        self.start = replace(self.start, record=record)

    def _add(self, count: int, ids: bytes, labels: bytes) -> None:
        self._ids.append(ids)
        self._labels.append(labels)
        self._count += count
        self._label_bytes += len(labels)


def packed(batches: Sequence[Batch]) -> tuple[PackedStrings, PackedStrings]:
    """The ids of some batches, and their labels as packed varints."""
    ids = b"".join(part for batch in batches for part in batch._ids)
    labels = b"".join(part for batch in batches for part in batch._labels)
    return (
        PackedStrings(ids, np.concatenate([batch._sizes.ids[: len(batch)] for batch in batches])),
        PackedStrings(labels, np.concatenate([batch._sizes.labels[: len(batch)] for batch in batches])),
    )


class BufferPool:
    """Buffers for batches of up to `size` videos, reused because touching fresh memory costs more than decoding into
    it. At most `depth` that nobody uses are kept. Threads may share it.
    """

    def __init__(self, schema: Schema, size: int, depth: int, make: MakeBuffer = ordinary_buffer) -> None:
        if size < 1:
            raise ValueError("a batch holds at least one video")
        self.size = size
        self._inputs, self._depth, self._make = dict(schema.inputs), depth, make
        self._free: list[dict[str, NDArray[np.float32]]] = []

    def acquire(self) -> dict[str, NDArray[np.float32]]:
        with suppress(IndexError):  # there may be none, or another thread takes the last
            return self._free.pop()
        return {name: self._make((self.size, width)) for name, width in self._inputs.items()}

    def release(self, buffers: dict[str, NDArray[np.float32]]) -> None:
        if len(self._free) < self._depth and not any(buffers is free for free in self._free):
            self._free.append(buffers)

    def close(self) -> None:
        """Let go of those that nobody uses, which may be page-locked; new ones may be asked for later."""
        self._free.clear()


class Batcher:
    """Puts the records of shards into batches, in order. Faults are skipped, or raised.

    Memory is that of the batches in use and of one block of records and what is made of it, however large or many
    the shards and whatever is in them.
    """

    def __init__(
        self, pool: BufferPool, readers: RecordReaders, shards: Sequence[Source], start: Position, *, skip: bool
    ) -> None:
        self._pool, self._readers, self._shards, self._skip = pool, readers, shards, skip
        self._batch = Batch(pool, start)

    def read(self, position: Position, stop: Place) -> Generator[Batch]:
        """Take the records from `position` on, up to the first that starts at `stop` or after it; yields the batches
        that became full. Raises InputError, and the first fault unless faults are skipped.
        """
        indices = range(position.shard, _shard_after(stop))
        for ahead, some in groupby(indices, lambda index: opens_ahead(self._shards[index])):
            group = [*some]
            begin = position if group[0] == position.shard else Position(group[0], 0, 0)
            end = min(stop, (group[-1] + 1, 0))
            yield from self._read_ahead(begin, end) if ahead else self._read_here(begin, end)

    def rest(self) -> Iterator[Batch]:
        """The last batch, unless nothing is in it; a new one begins."""
        batch = self._batch
        if len(batch) or batch.quarantined or batch.finished:
            yield self._next()

    def _read_ahead(self, position: Position, stop: Place) -> Generator[Batch]:
        """As `read`, of shards each of which is opened while the one before it is read."""
        shards = [(index, self._shards[index]) for index in range(position.shard, _shard_after(stop))]
        with closing(self._readers.opened(shards)) as opened:
            for index, reader in opened:
                first = position if index == position.shard else Position(index, 0, 0)
                yield from self._read_shard(reader, first, stop)

    def _read_here(self, position: Position, stop: Place) -> Generator[Batch]:
        """As `read`: what is plain several shards at a time, a shard in which something is not by its own reader."""
        while position.place < stop:
            if self._readers.plain_files:
                position = yield from self._read_plain(self._readers.plain_files, position, stop)
            if position.place < stop:
                with closing(self._readers.open(self._shards[position.shard])) as reader:
                    yield from self._read_shard(reader, position, stop)
                position = Position(position.shard + 1, 0, 0)

    def _read_plain(self, files: PlainFiles, position: Position, stop: Place) -> Generator[Batch, None, Position]:
        """Take records as far as they are plain; returns where that ended."""
        while position.place < stop:
            if not self._batch.room:
                yield self._next()
            run = self._batch.decode_plain(files, self._shards, position, stop)
            if run is None:
                break
            position = run.end
        if not self._batch.room:
            yield self._next()
        return position

    def _read_shard(self, reader: RecordReader, position: Position, stop: Place) -> Generator[Batch]:
        """Take the records of an open shard from `position` on that start before `stop`."""
        index, until = position.shard, stop[1] if position.shard == stop[0] else UNKNOWN_SIZE
        while position.shard == index and position.offset < until:
            position = yield from self._fill(reader, position, until)
            if position.shard == index and position.offset < until:
                block = reader.block(position).before(until)
                yield from self._add(block)
                position = block.end

    def _fill(self, reader: RecordReader, position: Position, stop: int) -> Generator[Batch, None, Position]:
        """Decode straight into batches; yields those that became full.

        Returns where that ended: at a record that is one for `RecordReader.block`, at `stop`, or at the next shard.
        """
        while position.offset < min(reader.size, stop):
            if not self._batch.room:
                yield self._next()
            run = self._batch.decode(reader, position, stop)
            if not run.records:
                return position
            for error in run.bad.values():
                self._fault(error)
            self._batch.add_label_faults(run.label_faults.values())
            position = Position(position.shard, position.record + run.records, position.offset + run.size)
            self._batch.end, self._batch.consumed = position, run.consumed
        if position.offset == reader.size > 0:
            reader.check_unchanged()
            position = self._finish(position.shard, position.record)
            if not self._batch.room:
                yield self._next()
        return position

    def _add(self, block: DecodedBlock) -> Iterator[Batch]:
        """Take one block; yields the batches that became full. Raises its first fault unless faults are skipped.

        A full batch waits for what comes next in the block, so that it is the one to say that the shard ended with it.
        """
        row = 0
        while row < len(block):
            if not self._batch.room:
                yield self._next()
            self._batch.unread_frames |= block.unread_frames
            stop = block.good(row, min(row + self._batch.room, len(block)))
            if stop == row:
                self._fault(block.rows.bad[row])
                stop += 1
            elif not self._batch.append(block.rows, row, stop):
                continue  # there is one more bad record now
            if faults := block.rows.label_faults:
                self._batch.add_label_faults(faults[at] for at in range(row, stop) if at in faults)
            row = stop
            self._batch.end, self._batch.consumed = block.position(row), block.consumed
        if block.lost:
            if not self._batch.room:
                yield self._next()
            self._fault(block.lost, bytes_lost=block.size - block.lost.offset)
        if block.last:
            self._finish(block.index, block.record + len(block) + (block.lost is not None))
        if not self._batch.room:
            yield self._next()

    def _finish(self, index: int, records: int) -> Position:
        """Record that a shard ended; returns where the next one starts."""
        self._batch.finished.append((index, records))
        self._batch.end, self._batch.consumed = Position(index + 1, 0, 0), None
        return self._batch.end

    def _fault(self, error: ShardError | RecordError, bytes_lost: int = 0) -> None:
        if not self._skip:
            raise error
        self._batch.quarantined.append(Quarantined(error.path, error.record, error.offset, error.reason, bytes_lost))

    def _next(self) -> Batch:
        """The current batch, after which a new one is filled."""
        batch, self._batch = self._batch, Batch(self._pool, self._batch.end)
        return batch


def batches(
    shards: Sequence[Source],
    schema: Schema,
    size: int,
    *,
    start: Position = BEGINNING,
    on_error: Literal["fail", "skip"] = "fail",
) -> Generator[Batch]:
    """The videos of `shards` in order, `size` at a time, from `start` on, decoded in the calling thread.

    size: the most videos in a batch, at least 1. Batches that are never released are never reused.

    Raises InputError, and with on_error="fail" ShardError or RecordError, at the first fault of a batch; the good
    records before it in that batch are dropped with it. With "skip", faults are in Batch.quarantined instead.
    """
    pool, readers = BufferPool(schema, size, _DEPTH), RecordReaders(schema)
    batcher = Batcher(pool, readers, shards, start, skip=on_error == "skip")
    yield from batcher.read(start, (len(shards), 0))
    yield from batcher.rest()


def _shard_after(stop: Place) -> int:
    """Index of the first shard of which nothing is before `stop`."""
    return stop[0] + (stop[1] > 0)
