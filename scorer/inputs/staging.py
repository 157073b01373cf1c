"""A local file for the bytes of a source that is none: compiled loops read from a descriptor."""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
import weakref
from dataclasses import dataclass

from scorer.inputs.source import Reader

STAGE_BYTES = 4 << 20
_ENOUGH = 256 << 10


@dataclass(frozen=True)
class Window:
    """Bytes start..stop-1 of a source, which are the first of the file `descriptor`."""

    descriptor: int
    start: int
    stop: int


class Stage:
    """Memory with a descriptor, for a few MB of a source at a time. Used again from source to source."""

    def __init__(self) -> None:
        descriptor = _memory()
        weakref.finalize(self, os.close, descriptor)
        os.ftruncate(descriptor, STAGE_BYTES)
        self._view = memoryview(mmap.mmap(descriptor, STAGE_BYTES))
        self._reader: Reader | None = None
        self._window = Window(descriptor, 0, 0)

    def window(self, reader: Reader, offset: int, size: int) -> Window:
        """The bytes of `reader`, which has `size`, from `offset` or a little before on; none where it is at its end.

        Raises InputError.
        """
        held = self._window
        whole = held.stop == size or held.stop - offset >= _ENOUGH
        here = reader is self._reader and held.start <= offset <= held.stop
        if not (here and whole):
            kept = held.stop - offset if here else 0  # a stream that is decompressed does not like to go back
            self._reader = None
            self._view[:kept] = self._view[offset - held.start : offset - held.start + kept] if kept else b""
            count = kept + reader.read_into(offset + kept, self._view[kept:])
            self._reader, self._window = reader, Window(held.descriptor, offset, offset + count)
        return self._window


def _memory() -> int:
    """The descriptor of a file without a name, in memory where that can be had."""
    linux = sys.platform == "linux"
    if linux:
        return os.memfd_create("stage")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
