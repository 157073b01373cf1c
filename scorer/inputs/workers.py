"""Decoding in processes of its own, for a model that outruns one decoder.

Shards are dealt out like cards, and what each process has decoded is taken from it in the order of the shards, so
that the rows are those of a single decoder. Features come through memory that both sides map, everything else through
a socket. The memory has no name and the socket ends with either side: nothing is left behind, however a side dies.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
from bisect import bisect_left
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from scorer.errors import Hint, InputError, Yt8mError
from scorer.inputs.position import Position
from scorer.inputs.readers import decoded_blocks, register_format, registered_formats
from scorer.inputs.records import BLOCK_BYTES, DecodedBlock, Faults, RecordFormat, Schema
from scorer.inputs.source import Source

_SLOTS = 4
"""Blocks that a process decodes ahead; of BLOCK_BYTES each, since numbers take no more room than their records did."""
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from scorer.inputs.workers import serve; serve()"


@dataclass
class SharedRows:
    """The records of a block decoded elsewhere: see scorer.inputs.records.Rows.

    bad: in ascending order.
    slot: where in the shared memory the features are, float32 (good rows, width) for each input.
    features: views of them in the parent, nothing before.
    """

    ids: list[bytes]
    labels: NDArray[np.uint8]
    label_sizes: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    bad: Faults
    slot: int
    features: list[NDArray[np.float32]] = field(default_factory=list)

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        """As Rows.copy; here all bad rows are known."""
        good = first - bisect_left(list(self.bad), first)
        for values, to in zip(self.features, rows, strict=True):
            to[...] = values[good : good + last - first]
        return True


@dataclass(frozen=True)
class _Task:
    shards: list[tuple[int, Source]]
    schema: Schema
    start: Position
    formats: list[RecordFormat]


class _Worker:
    """The parent's side of one process."""

    def __init__(self, task: _Task) -> None:
        self._widths = list(task.schema.inputs.values())
        ours, theirs = socket.socketpair()
        with _shared_memory() as memory, theirs:
            self._memory = mmap.mmap(memory.fileno(), _SLOTS * BLOCK_BYTES)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CHILD, json.dumps(sys.path), str(theirs.fileno()), str(memory.fileno())],
                pass_fds=(theirs.fileno(), memory.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the parent
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        self._connection = Connection(ours.detach())
        with suppress(ConnectionError):  # it died at once; what is received will tell
            self._connection.send(task)

    def blocks(self) -> Generator[DecodedBlock]:
        """The blocks of this worker's next shard. Raises InputError."""
        last = False
        while not last:
            block, rows = self._receive()
            rows.features = _features(self._memory, rows.slot, len(block) - len(rows.bad), self._widths)
            yield block
            last = block.last
            with suppress(ConnectionError):  # all that it had to send may be here already
                self._connection.send(rows.slot)

    def _receive(self) -> tuple[DecodedBlock, SharedRows]:
        try:
            message: tuple[DecodedBlock, SharedRows] | Yt8mError = self._connection.recv()
        except (EOFError, ConnectionError):
            reason = f"a decoding process ended with status {self._process.wait()}"
            raise InputError(reason, remedy="give the machine more memory", hints=(Hint.IN_PROCESS,)) from None
        if isinstance(message, Yt8mError):
            raise message
        return message

    def close(self) -> None:
        self._process.kill()  # it has nothing to put in order
        with suppress(subprocess.TimeoutExpired):  # it hangs in a file system, and ends when that answers
            self._process.wait(timeout=5)
        self._connection.close()


def decoded_by_workers(
    sources: Sequence[Source], schema: Schema, start: Position, count: int
) -> Generator[DecodedBlock]:
    """What `decoded_blocks` gives for all of `sources`, from `count` processes. Raises InputError."""
    shards = list(enumerate(sources))[start.shard :]
    with ExitStack() as stack:
        workers = []
        for i in range(min(count, len(shards))):
            workers.append(_Worker(_Task(shards[i::count], schema, start, registered_formats())))
            stack.callback(workers[-1].close)
        for i in range(len(shards)):
            yield from workers[i % count].blocks()


def serve() -> None:
    """A worker process: reads its task from the socket and decodes until the parent wants no more or has gone."""
    connection = Connection(int(sys.argv[2]))
    memory = mmap.mmap(int(sys.argv[3]), _SLOTS * BLOCK_BYTES)
    with suppress(EOFError, ConnectionError):
        task: _Task = connection.recv()
        try:
            _serve(task, connection, memory)
        except Yt8mError as error:
            connection.send(error)
        while True:
            connection.recv()


def _serve(task: _Task, connection: Connection[Any, Any], memory: mmap.mmap) -> None:
    for new in task.formats:
        register_format(new)
    widths = list(task.schema.inputs.values())
    free = list(range(_SLOTS))
    for block in decoded_blocks(task.shards, task.schema, task.start):
        while not free or connection.poll():
            free.append(connection.recv())
        rows = _shared(block, memory, free.pop(), widths)
        connection.send((replace(block, rows=rows), rows))


def _shared(block: DecodedBlock, memory: mmap.mmap, slot: int, widths: list[int]) -> SharedRows:
    """The rows, with the features of the good ones in `slot`."""
    source = block.rows
    while not _copy_good(block, _features(memory, slot, len(block) - len(source.bad), widths)):
        pass  # there are fewer good ones now
    bad = dict(sorted(source.bad.items()))
    return SharedRows(source.ids, source.labels, source.label_sizes, source.labelled, bad, slot)


def _copy_good(block: DecodedBlock, features: list[NDArray[np.float32]]) -> bool:
    """Copy the features of all good rows; False if there prove to be fewer."""
    row = done = 0
    while row < len(block):
        stop = block.good(row, len(block))
        if not block.rows.copy(row, stop, [values[done : done + stop - row] for values in features]):
            return False
        done += stop - row
        row = stop + 1  # past the bad one
    return True


def _features(memory: mmap.mmap, slot: int, count: int, widths: list[int]) -> list[NDArray[np.float32]]:
    """Arrays (count, width) one after the other in a slot."""
    features, offset = [], slot * BLOCK_BYTES
    for width in widths:
        features.append(np.ndarray((count, width), np.float32, memory, offset))
        offset += 4 * count * width
    return features


def _shared_memory() -> IO[bytes]:
    """A file without a name, as large as all slots, whose space is really there. Raises InputError."""
    try:
        # The kernel's own memory where it can be had: containers often have too small a /dev/shm.
        linux = sys.platform == "linux"
        memory = os.fdopen(os.memfd_create("blocks"), "r+b") if linux else tempfile.TemporaryFile()  # noqa: SIM115
        if linux:
            os.posix_fallocate(memory.fileno(), 0, _SLOTS * BLOCK_BYTES)
        memory.truncate(_SLOTS * BLOCK_BYTES)
    except OSError as error:
        raise InputError(f"no memory to share with a decoding process: {error.strerror}") from None
    return memory
