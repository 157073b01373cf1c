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
class Extent:
    """How far a growing file counts: its length in bytes and the CRC32C of those bytes."""

    length: int = 0
    crc: int = 0

    def add(self, data: bytes) -> Extent:
        """The extent after `data` more."""
        return Extent(self.length + len(data), loops.active.crc32c(data, self.crc))

    def with_start(self, old: bytes, new: bytes) -> Extent:
        """The extent of the same bytes where these begin with `new` in the place of `old`, which is as long.

        For any A, A' of one length, crc(A + B) ^ crc(A' + B) = (crc(A) ^ crc(A')) * x ** (8 * len(B)) modulo the CRC's
        polynomial: the CRC is linear except for constants, which cancel.
        """
        if len(old) != len(new) or len(old) > self.length:
            raise ValueError("another start is as long as the one before, and no longer than all")
        change = loops.active.crc32c(old) ^ loops.active.crc32c(new)
        return Extent(self.length, self.crc ^ _shifted(change, self.length - len(old)))


NO_BYTES = Extent()

_POLYNOMIAL = 0x82F63B78  # CRC32C's (RFC 3720), its bits reversed, as all that follows is
_ONE = 1 << 31


def _shifted(crc: int, zeros: int) -> int:
    """`crc` * x ** (8 * zeros) modulo the polynomial: by squaring, as zlib's crc32_combine does."""
    power = _ONE >> 8  # x ** 8
    while zeros:
        if zeros & 1:
            crc = _product(crc, power)
        power, zeros = _product(power, power), zeros >> 1
    return crc


def _product(a: int, b: int) -> int:
    """`a` * `b` modulo the polynomial."""
    product = 0
    for place in range(32):
        if a & (_ONE >> place):
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)
    return product


class AppendFile:
    """A file that only grows. extent: how far it is now. Methods raise OSError as the system reports it."""

    def __init__(self, path: Path, descriptor: int, extent: Extent) -> None:
        self.path = path
        self.extent = extent
        self._synced = True  # up to `extent`, which was committed after that
        self._descriptor = descriptor

    @classmethod
    def new(cls, path: Path, mode: int | None = None) -> AppendFile:
        """A new file, with this mode where one is given. Raises FileExistsError where there is anything already."""
        descriptor = create(path)
        if mode is not None:
            os.fchmod(descriptor, mode)
        return cls(path, descriptor, NO_BYTES)

    @classmethod
    def reopen(cls, path: Path, extent: Extent, start: bytes = b"") -> AppendFile:
        """The file as it was at `extent`; whatever stands behind that is cut off.

        start: what it began with, if `restart` may have changed that.

        Raises:
            ResumeError: the file is not there or does not start with what the extent describes.
            OSError: it is not this user's own.
        """
        descriptor = None
        try:
            descriptor = open_own(path)
            if len(start) <= extent.length:
                os.pwrite(descriptor, start, 0)
            if not _starts_with(descriptor, extent):
                reason = f"its first {extent.length} bytes are not what was committed"
                raise ResumeError(f"{path}: {reason}", hints=(Hint.RESTART,))
            os.ftruncate(descriptor, extent.length)
            os.lseek(descriptor, extent.length, os.SEEK_SET)
        except FileNotFoundError:
            raise ResumeError(f"{path} was removed", hints=(Hint.RESTART,)) from None
        except BaseException:
            if descriptor is not None:
                os.close(descriptor)
            raise
        return cls(path, descriptor, extent)

    def append(self, data: bytes) -> None:
        """Write `data`, all of it, at the end; `sync` makes it last."""
        write_all(self._descriptor, data)
        self.extent = self.extent.add(data)
        self._synced = False

    def restart(self, old: bytes, new: bytes) -> None:
        """Let the file begin with `new`, where it begins with `old`, which is as long; no more is appended."""
        self.extent = self.extent.with_start(old, new)
        os.pwrite(self._descriptor, new, 0)
        self._synced = False

    def sync(self) -> None:
        """Make what was appended survive a power loss."""
        if not self._synced:
            os.fsync(self._descriptor)
            self._synced = True

    def close(self) -> None:
        os.close(self._descriptor)


def holds(path: Path, extent: Extent) -> bool:
    """Whether the file at `path` is there and is what `extent` describes, no less and no more."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        return os.fstat(descriptor).st_size == extent.length and _starts_with(descriptor, extent)
    finally:
        os.close(descriptor)


def _starts_with(descriptor: int, extent: Extent) -> bool:
    if os.fstat(descriptor).st_size < extent.length:  # looked at first: a forged length may be enormous
        return False
    crc = 0
    for start in range(0, extent.length, _CHUNK):
        crc = loops.active.crc32c(os.pread(descriptor, min(_CHUNK, extent.length - start), start), crc)
    return crc == extent.crc
