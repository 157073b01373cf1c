"""Files that only grow, and how far they count."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from scorer.errors import Hint, ResumeError
from scorer.kernels import loops
from scorer.outputs.atomic import write_all
from scorer.outputs.own import create, open_own

_CHUNK = 1 << 20  # bytes read at once where a prefix is checked


@dataclass(frozen=True)
class Checkpoint:
    """How far a growing file counts: its length in bytes and the CRC32C of those bytes."""

    length: int = 0
    crc: int = 0

    def add(self, data: bytes) -> Checkpoint:
        """The checkpoint after `data` more."""
        return Checkpoint(self.length + len(data), loops.active.crc32c(data, self.crc))


NOTHING = Checkpoint()


class AppendFile:
    """A file that only grows. checkpoint: how far it is now. Methods raise OSError as the system reports it."""

    def __init__(self, path: Path, descriptor: int, checkpoint: Checkpoint) -> None:
        self.path = path
        self.checkpoint = checkpoint
        self._synced = True  # up to `checkpoint`, which was committed after that
        self._descriptor = descriptor

    @classmethod
    def new(cls, path: Path, mode: int | None = None) -> AppendFile:
        """A new file, with this mode where one is given. Raises FileExistsError where there is anything already."""
        descriptor = create(path)
        if mode is not None:
            os.fchmod(descriptor, mode)
        return cls(path, descriptor, NOTHING)

    @classmethod
    def reopen(cls, path: Path, checkpoint: Checkpoint) -> AppendFile:
        """The file as it was at `checkpoint`; whatever stands behind that is cut off.

        Raises:
            ResumeError: the file is not there or does not start with what the checkpoint describes.
            OSError: it is not this user's own.
        """
        descriptor = None
        try:
            descriptor = open_own(path)
            if not _starts_with(descriptor, checkpoint):
                reason = f"its first {checkpoint.length} bytes are not what was committed"
                raise ResumeError(f"{path}: {reason}", hints=(Hint.RESTART,))
            os.ftruncate(descriptor, checkpoint.length)
            os.lseek(descriptor, checkpoint.length, os.SEEK_SET)
        except FileNotFoundError:
            raise ResumeError(f"{path} was removed", hints=(Hint.RESTART,)) from None
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise
        return cls(path, descriptor, checkpoint)

    def append(self, data: bytes) -> None:
        """Write `data`, all of it, at the end; `sync` makes it last."""
        write_all(self._descriptor, data)
        self.checkpoint = self.checkpoint.add(data)
        self._synced = False

    def sync(self) -> None:
        """Make what was appended survive a power loss."""
        if not self._synced:
            os.fsync(self._descriptor)
            self._synced = True

    def close(self) -> None:
        os.close(self._descriptor)


def holds(path: Path, checkpoint: Checkpoint) -> bool:
    """Whether the file at `path` is there and is what `checkpoint` describes, no less and no more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        return os.fstat(descriptor).st_size == checkpoint.length and _starts_with(descriptor, checkpoint)
    finally:
        os.close(descriptor)


def _starts_with(descriptor: int, checkpoint: Checkpoint) -> bool:
    if os.fstat(descriptor).st_size < checkpoint.length:  # looked at first: a forged length may be enormous
        return False
    crc = 0
    for start in range(0, checkpoint.length, _CHUNK):
        crc = loops.active.crc32c(os.pread(descriptor, min(_CHUNK, checkpoint.length - start), start), crc)
    return crc == checkpoint.crc
