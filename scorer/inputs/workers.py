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
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import IO

import numpy as np
from numpy.typing import NDArray

import scorer
from scorer.errors import Hint, InputError, Yt8mError
from scorer.inputs.channel import Channel
from scorer.inputs.position import Position
from scorer.inputs.readers import decoded_blocks, register_format, registered_formats
from scorer.inputs.records import BLOCK_BYTES, DecodedBlock, Faults, RecordFormat, Schema
from scorer.inputs.source import Source

_SLOTS = 4
"""Blocks that a process decodes ahead, each of up to BLOCK_BYTES of features."""
_CHILD = """
import json, sys
from importlib.util import module_from_spec, spec_from_file_location
sys.path += [entry for entry in json.loads(sys.argv[2]) if entry not in sys.path]
spec = spec_from_file_location("scorer", sys.argv[1])
sys.modules["scorer"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["scorer"])
from scorer.inputs.workers import serve
serve(*map(int, sys.argv[3:]))
"""
"""This very package, whatever of its name lies elsewhere; all else from Python's own folders before the parent's.

With -P the working folder is none of Python's: a json.py there is not the one that is meant.
"""


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
    label_faults: Faults
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
    """The parent's side of one process. Raises OSError where it cannot be started."""

    def __init__(self) -> None:
        self._widths: list[int] = []
        with ExitStack() as stack:
            ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
            memory = stack.enter_context(_shared_memory())
            self._memory = mmap.mmap(memory.fileno(), _SLOTS * BLOCK_BYTES)
            descriptors = theirs.fileno(), memory.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _CHILD, *_where(), *map(str, descriptors)],
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the parent
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
            self._channel = Channel(socket.socket(fileno=ours.detach()))

    def assign(self, task: _Task) -> None:
        """Say what to decode."""
        self._widths = list(task.schema.inputs.values())
        with suppress(ConnectionError):  # it died at once; what is received will tell
            self._channel.send(task)

    def blocks(self) -> Generator[DecodedBlock]:
        """The blocks of this worker's next shard. Raises InputError."""
        last = False
        while not last:
            block, rows = self._receive()
            rows.features = _features(self._memory, rows.slot, len(block) - len(rows.bad), self._widths)
            yield block
            last = block.last
            with suppress(ConnectionError):  # all that it had to send may be here already
                self._channel.send(rows.slot)

    def _receive(self) -> tuple[DecodedBlock, SharedRows]:
        try:
            message: tuple[DecodedBlock, SharedRows] | Yt8mError = self._channel.receive()
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
        self._channel.close()


def decoded_by_workers(
    sources: Sequence[Source],
    schema: Schema,
    start: Position,
    count: int,
    fewer: Callable[[int, str], None] = lambda started, reason: None,
) -> Generator[DecodedBlock]:
    """What `decoded_blocks` gives for all of `sources`, from `count` processes.

    Where not all of them can be started, the work is done by those that were, or in this process, and `fewer` is called
    with how many there are and the reason. Raises InputError.
    """
    shards = list(enumerate(sources))[start.shard :]
    with ExitStack() as stack:
        count = min(count, len(shards))
        workers = _started(shards, _Task([], schema, start, registered_formats()), count, stack, fewer)
        if not workers:
            yield from decoded_blocks(shards, schema, start)
        for i in range(len(shards) if workers else 0):
            yield from workers[i % len(workers)].blocks()


def _started(
    shards: Sequence[tuple[int, Source]],
    task: _Task,
    count: int,
    stack: ExitStack,
    fewer: Callable[[int, str], None],
) -> list[_Worker]:
    """As many processes as can be had, up to `count`, each with its part of the shards; closed by `stack`."""
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            workers.append(_Worker())
            stack.callback(workers[-1].close)
    except OSError as error:
        fewer(len(workers), error.strerror or str(error))
    for i, worker in enumerate(workers):
        worker.assign(replace(task, shards=list(shards[i :: len(workers)])))
    return workers


def serve(end: int, slots: int) -> None:
    """A worker process: reads its task from the socket and decodes until the parent wants no more or has gone.

    end, slots: descriptors of the socket and of the shared memory.
    """
    channel = Channel(socket.socket(fileno=end))
    memory = mmap.mmap(slots, _SLOTS * BLOCK_BYTES)
    with suppress(EOFError, ConnectionError):
        task: _Task = channel.receive()
        try:
            _serve(task, channel, memory)
        except Yt8mError as error:
            channel.send(error)
        while True:
            channel.receive()


def _serve(task: _Task, channel: Channel, memory: mmap.mmap) -> None:
    for new in task.formats:
        register_format(new)
    widths = list(task.schema.inputs.values())
    free = list(range(_SLOTS))
    for block in decoded_blocks(task.shards, task.schema, task.start):
        while not free or channel.pending():
            free.append(channel.receive())
        rows = _shared(block, memory, free.pop(), widths)
        channel.send((replace(block, rows=rows), rows))


def _shared(block: DecodedBlock, memory: mmap.mmap, slot: int, widths: list[int]) -> SharedRows:
    """The rows, with the features of the good ones in `slot`."""
    source = block.rows
    while not _copy_good(block, _features(memory, slot, len(block) - len(source.bad), widths)):
        pass  # there are fewer good ones now
    bad = dict(sorted(source.bad.items()))
    return SharedRows(source.ids, source.labels, source.label_sizes, source.labelled, bad, source.label_faults, slot)


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


def _where() -> tuple[str, str]:
    """For _CHILD: this package's file, and the folders that this process imports from, as JSON."""
    assert scorer.__file__
    return scorer.__file__, json.dumps([os.path.abspath(entry) for entry in sys.path])


def _shared_memory() -> IO[bytes]:
    """A file without a name, as large as all slots, whose space is really there. Raises OSError."""
    # The kernel's own memory where it can be had: containers often have too small a /dev/shm.
    linux = sys.platform == "linux"
    memory = os.fdopen(os.memfd_create("blocks"), "r+b") if linux else tempfile.TemporaryFile()  # noqa: SIM115
    try:
        if linux:
            os.posix_fallocate(memory.fileno(), 0, _SLOTS * BLOCK_BYTES)
        memory.truncate(_SLOTS * BLOCK_BYTES)
    except OSError:
        memory.close()
        raise
    return memory
