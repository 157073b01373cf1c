"""Where a shard's bytes come from: an address that is stat'ed once and read from any position.

A `Source` is what commands find, and what jobs, training and export take. Whether its bytes are still those that were
found is judged here: when it is opened, while it is read, and at its end.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol, TypeGuard

from scorer.errors import InputError


@dataclass(frozen=True)
class FileStat:
    """What tells whether a shard is still the one it was.

    size: in bytes.
    version: of a local file its modification time in ns; elsewhere whatever changes with the content, such as an ETag.
    """

    size: int
    version: int | str

    def __str__(self) -> str:
        if isinstance(self.version, str):
            return f"{self.size} bytes of version {self.version or 'unknown'}"
        return f"{self.size} bytes modified at {self.version} ns"


UNKNOWN_SIZE = 1 << 62
"""Of a stream whose end has not been seen: more than any."""


class Reader(Protocol):
    """An open source. Every method raises InputError, which names the address."""

    @property
    def descriptor(self) -> int | None:
        """A local file's, which compiled loops read from; None where there is none."""

    @property
    def size(self) -> int:
        """Bytes of its content; of a stream that is decompressed UNKNOWN_SIZE until its last byte was read."""

    @property
    def damage(self) -> str:
        """Why there are fewer bytes than `size` says; empty where there are not."""

    def read_into(self, offset: int, buffer: memoryview) -> int:
        """Fill `buffer` with the bytes from `offset` on; returns how many: fewer only where the source ends.

        Raises InputError where `offset` is past the end, or the source proves to be shorter than when it was found.
        """

    def check_unchanged(self) -> None:
        """Raise InputError where the source's stat is no longer what it was when it was found."""

    def close(self) -> None: ...


class Source(Protocol):
    """A shard, found and not yet open. It can be pickled, and opened any number of times, also by threads at once."""

    @property
    def address(self) -> str:
        """As the user gave it, for messages."""

    @property
    def stat(self) -> FileStat:
        """As it was when the source was found."""

    @property
    def identity(self) -> Hashable:
        """Equal for two addresses of the same thing."""

    @property
    def canonical(self) -> str:
        """The address as it holds in any folder, for what is kept on disk. Raises InputError where there is none."""

    def open(self) -> Reader:
        """Raises InputError where it cannot be read, or is not what was found."""


AGAIN = "run again once nothing writes to it"
"""What helps where a source has changed."""


def check_same(source: Source, now: FileStat, when: str) -> None:
    """Raise InputError where a source whose stat is `now` is not what was found; `when` it was seen, in words."""
    then = source.stat
    if then != now:
        difference = f"{then.size} bytes then, {now.size} now"
        raise InputError(f"{source.address}: changed {when} ({difference})", remedy=AGAIN)


def check_position(source: Source, offset: int) -> None:
    """Raise InputError where `offset` is past the source's end."""
    if offset > (size := source.stat.size):
        raise InputError(f"{source.address}: has {size} bytes, but byte {offset} was to come next: it has changed")


class Opening(Protocol):
    """A source that is being opened."""

    def reader(self) -> Reader:
        """Wait until it is open. Raises InputError as `Source.open`."""

    def close(self) -> None:
        """In the place of `reader`, where it is not wanted any more."""


class OpensAhead(Protocol):
    """A source far away, which is better opened before its turn comes, and read from its start to its end."""

    def begin(self) -> Opening:
        """Begin to open it, and to fetch its first bytes."""


def opens_ahead(source: Source | None) -> TypeGuard[OpensAhead]:
    """Asked of every shard: `isinstance` of a protocol takes as long as opening a file."""
    return hasattr(source, "begin")


@dataclass(frozen=True)
class LocalFile:
    """A regular file. address: its path. identity: device and inode."""

    address: str
    stat: FileStat
    identity: tuple[int, int]

    @classmethod
    def at(cls, path: str, status: os.stat_result | None = None) -> LocalFile:
        """The file at `path`, whose `status` may be known. Raises InputError where it is not a readable file."""
        status = status or status_of(path)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is not a regular file", remedy="copy what it gives into a file")
        if not os.access(path, os.R_OK):
            raise InputError(f"{path}: permission denied", remedy="make it readable")
        return cls(path, _stat(status), (status.st_dev, status.st_ino))

    @property
    def canonical(self) -> str:
        return absolute(self.address)

    @property
    def modified(self) -> tuple[int, int]:
        """Seconds, and the ns beyond them: from the year 2262 on it takes more than an int64 to have both in one."""
        assert isinstance(self.stat.version, int)
        return divmod(self.stat.version, 10**9)

    def check_unchanged(self) -> None:
        """By the path: one that was removed or replaced meanwhile has changed too, though what was read is whole."""
        try:
            status = os.stat(self.address)
        except OSError as error:
            raise InputError(f"{self.address}: is gone ({error.strerror})", remedy=AGAIN) from None
        check_same(self, _stat(status), "while it was read")

    def open(self) -> LocalReader:
        return LocalReader(self)


class LocalReader:
    """An open LocalFile."""

    damage = ""

    def __init__(self, source: LocalFile) -> None:
        self._source, self.size, self.check_unchanged = source, source.stat.size, source.check_unchanged
        try:
            self.descriptor = os.open(source.address, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would wait
        except OSError as error:
            reason = f"cannot be opened: {error.strerror}"
            raise InputError(f"{source.address}: {reason}", remedy="check the path") from None
        try:
            check_same(source, _stat(os.fstat(self.descriptor)), "since it was found")
        except InputError:
            self.close()
            raise

    def read_into(self, offset: int, buffer: memoryview) -> int:
        address, size = self._source.address, self._source.stat.size
        check_position(self._source, offset)
        count, done = min(len(buffer), size - offset), 0
        while done < count:
            try:
                more = os.preadv(self.descriptor, [buffer[done:count]], offset + done)
            except OSError as error:
                raise InputError(f"{address}: cannot be read at byte {offset + done}: {error.strerror}") from None
            if not more:
                self.check_unchanged()
                raise InputError(f"{address}: ends at byte {offset + done} of {size}")
            done += more
        return done

    def close(self) -> None:
        os.close(self.descriptor)


def status_of(path: str) -> os.stat_result:
    """Raises InputError where there is nothing at `path`."""
    try:
        return os.stat(path)
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else getattr(error, "strerror", None) or error
        raise InputError(f"{path}: {reason}", remedy="check the path") from None


def absolute(path: str) -> str:
    """`path` from the root of the file system. Raises InputError where the working folder was removed."""
    try:
        return os.path.abspath(path)
    except FileNotFoundError:
        raise InputError(f"{path}: the working folder is gone", remedy="change to another") from None


def _stat(status: os.stat_result) -> FileStat:
    return FileStat(status.st_size, status.st_mtime_ns)
