"""An output that can only be written straight through: standard output, a pipe, a device. Nothing to resume."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from crc32c import crc32c

from scorer.errors import OutputError
from scorer.inputs.source import FileStat
from scorer.outputs.atomic import write_all
from scorer.outputs.journal import Checkpoint, Commit
from scorer.outputs.sink import STANDARD_OUTPUT
from scorer.system.terminal import print_stderr


class Stream:
    """Takes what `scorer.outputs.sink.Output` takes, and sends the rows off at once.

    Records that are set aside go to standard error, one JSON object a line.

    Raises BrokenPipeError when the reader has gone away, OutputError for everything else.
    """

    def __init__(self, name: str, descriptor: int, ids: BinaryIO) -> None:
        self.last: Commit | None = None
        self.finished: list[tuple[FileStat, int]] = []
        self.completed: Mapping[str, Any] | None = None
        self.rows = Checkpoint()
        self._name = name
        self._descriptor = descriptor
        self._notes = {"ids": ids}  # hits are for a job that goes on, which this one cannot

    def append(self, *, rows: bytes, quarantine: bytes = b"", ids: bytes = b"", hits: bytes = b"") -> None:
        try:
            write_all(self._descriptor, rows)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"{self._name}: cannot be written: {error.strerror}") from error
        with _scratch():
            write_all(self._notes["ids"].fileno(), ids)
        self.rows = Checkpoint(self.rows.length + len(rows), crc32c(rows, self.rows.crc))
        if quarantine:
            print_stderr(quarantine.decode().removesuffix("\n"))

    @contextmanager
    def notes(self, name: str) -> Iterator[BinaryIO]:
        with _scratch():
            yield self._notes[name]

    def commit(self, commit: Commit) -> None:
        self.finished += commit.finished
        self.last = commit

    def complete(self, record: Mapping[str, Any]) -> None:
        self.completed = record


@contextmanager
def streamed(output: str, wait: Callable[[], None]) -> Iterator[Stream]:
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
        yield Stream(output, descriptor, ids)


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
