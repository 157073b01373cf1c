"""An output that can only be written straight through: standard output, a pipe, a device. Nothing to resume."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

from crc32c import crc32c

from scorer.commit import STANDARD_OUTPUT
from scorer.errors import OutputError
from scorer.journal import Commit, Mark, Stamp, write_all


class Stream:
    """Takes what `scorer.commit.Output` takes, and sends the rows off at once.

    Records that are set aside go to standard error, one JSON object a line.

    Raises BrokenPipeError when the reader has gone away, OutputError for everything else.
    """

    def __init__(self, name: str, descriptor: int, ids: BinaryIO, hits: BinaryIO) -> None:
        self.last: Commit | None = None
        self.finished: list[tuple[Stamp, int]] = []
        self.completed: Mapping[str, Any] | None = None
        self.rows = Mark()
        self._name = name
        self._descriptor = descriptor
        self._notes = {"ids": ids, "hits": hits}

    def append(self, *, rows: bytes, quarantine: bytes = b"", ids: bytes = b"", hits: bytes = b"") -> None:
        try:
            write_all(self._descriptor, rows)
            self._notes["ids"].write(ids)
            self._notes["hits"].write(hits)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"{self._name}: cannot write: {error.strerror}") from error
        self.rows = Mark(self.rows.length + len(rows), crc32c(rows, self.rows.crc))
        sys.stderr.write(quarantine.decode())

    @contextmanager
    def notes(self, name: str) -> Iterator[BinaryIO]:
        self._notes[name].flush()
        yield self._notes[name]

    def commit(self, commit: Commit) -> None:
        self.finished += commit.finished
        self.last = commit

    def complete(self, record: Mapping[str, Any]) -> None:
        self.completed = record


@contextmanager
def streamed(output: str) -> Iterator[Stream]:
    """Open `output`, "-" for standard output.

    Raises:
        OutputError: it cannot be opened for writing.
    """
    with ExitStack() as stack:
        try:
            descriptor = 1
            if output != STANDARD_OUTPUT:
                descriptor = os.open(output, os.O_WRONLY | os.O_CLOEXEC)
                stack.callback(os.close, descriptor)
            ids = stack.enter_context(tempfile.TemporaryFile())
            hits = stack.enter_context(tempfile.TemporaryFile())
        except OSError as error:
            raise OutputError(f"{output}: cannot be opened: {error.strerror}") from error
        yield Stream(output, descriptor, ids, hits)
