"""An output that can only be written straight through: standard output, a pipe, a device. Nothing to resume."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from scorer.errors import OutputError
from scorer.inputs.source import FileStat
from scorer.outputs.append import NO_BYTES, Extent
from scorer.outputs.atomic import write_all
from scorer.outputs.paths import STANDARD_OUTPUT
from scorer.outputs.row_format import RowFormat
from scorer.outputs.sink import Chunk, Commit, Kept
from scorer.system.terminal import print_stderr


class StreamSink:
    """A sink that sends the rows off at once, from `open_stream`. The attributes are those of `Sink`.

    Quarantined records go to standard error, one JSON object a line.

    Raises BrokenPipeError when the reader has gone away, OutputError for everything else.
    """

    resumable = False
    embeddings = None
    quarantine_place = "on standard error"

    def __init__(self, name: str, descriptor: int, ids: BinaryIO, row_format: RowFormat) -> None:
        self.last: Commit | None = None
        self.finished: list[tuple[FileStat, int]] = []
        self.completed: Mapping[str, Any] | None = None
        self._name, self._descriptor, self._ids, self._format = name, descriptor, ids, row_format
        self._sent = NO_BYTES

    def append(self, chunk: Chunk) -> None:
        rows = chunk.rows(self._format)
        if rows:
            self._send(rows if self._sent.length else self._format.header + rows)
        with _scratch():
            write_all(self._ids.fileno(), chunk.kept("ids"))
        if chunk.quarantined:
            print_stderr(chunk.kept("quarantine").decode().removesuffix("\n"))

    @contextmanager
    def kept(self, what: Kept) -> Iterator[BinaryIO]:
        if what != "ids":
            raise ValueError(f"{what} is kept for a job that is resumed, which this one cannot be")
        with _scratch():
            self._ids.seek(0)
            yield self._ids
            self._ids.seek(0, os.SEEK_END)

    def commit(self, commit: Commit) -> None:
        self.finished += commit.finished
        self.last = commit

    def seal(self) -> Extent:
        if not self._sent.length:
            self._send(self._format.header)
        return self._sent

    def complete(self, record: Mapping[str, Any]) -> None:
        self.seal()
        self.completed = record

    def discard(self) -> None:
        pass  # what was sent is gone

    def _send(self, data: bytes) -> None:
        try:
            write_all(self._descriptor, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"{self._name}: cannot be written: {error.strerror}") from error
        self._sent = self._sent.add(data)


@contextmanager
def open_stream(output: str, row_format: RowFormat, wait: Callable[[], None]) -> Iterator[StreamSink]:
    """Open `output`, "-" for standard output.

    Args:
        wait: called between looks for a reader of the pipe `output`; what it raises ends that.

    Raises:
        OutputError: it, or its temporary file, cannot be opened for writing.
    """
    with ExitStack() as stack:
        descriptor = 1
        if output != STANDARD_OUTPUT:
            descriptor = _opened(output, wait)
            stack.callback(os.close, descriptor)
        with _scratch():  # unbuffered, or closing them may try once more to write what could not be written
            ids = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        yield StreamSink(output, descriptor, ids, row_format)


def _opened(output: str, wait: Callable[[], None]) -> int:
    """`output`, opened for writing. A plain open would wait for a pipe's reader through every signal."""
    while True:
        try:
            descriptor = os.open(output, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO or not Path(output).is_fifo():
                raise OutputError(f"{output}: cannot be opened: {error.strerror}") from error
            wait()
        else:
            os.set_blocking(descriptor, True)
            return descriptor


@contextmanager
def _scratch() -> Iterator[None]:
    """Turn the system's errors about the temporary files into an OutputError."""
    try:
        yield
    except OSError as error:
        folder = tempfile.tempdir or "the temporary folder"  # None where no folder would do
        raise OutputError(
            f"{folder}: cannot hold this job's temporary files: {error.strerror}",
            remedy="make room there, or name another folder in TMPDIR",
        ) from error
