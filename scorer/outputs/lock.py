"""One output, one owner: a lock that the kernel drops when its holder dies, however it dies.

A POSIX record lock (fcntl), since it belongs to the process: one that outlives a killed parent does not inherit it, and
it holds on network file systems that support locks at all. Such a lock does not keep out another thread
of its own process, and goes with the first descriptor of its file that is closed; so the process itself keeps a list of
what it holds, and opens none of it twice.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scorer.errors import BusyError, OutputError
from scorer.outputs.atomic import is_at
from scorer.outputs.own import NotOwnError, create, open_own

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
_held: set[tuple[int, int]] = set()  # device and inode of each lock file that this process holds
_guard = threading.Lock()  # of the list, and of the files while they are opened and closed


def _forget() -> None:
    """In a forked child: it holds nothing, and the thread that held the guard meanwhile is not there to let it go."""
    global _guard
    _guard = threading.Lock()
    _held.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def owned(path: Path, output: str) -> Iterator[None]:
    """Hold the lock file `path` for the output named `output`; the file is gone afterwards.

    Raises:
        BusyError: another live process or another thread holds it; the message says which.
        OutputError: the lock file cannot be made or is not this user's own, or the file system has no locks.
    """
    try:
        with _guard:
            descriptor = _acquire(path, output)
            _held.add(_identity(os.fstat(descriptor)))
    except OSError as error:
        reason = f"it {error.reason}" if isinstance(error, NotOwnError) else error.strerror
        remedy = "write to a local folder" if error.errno in _NO_LOCKS else "fix that or choose another output"
        raise OutputError(f"{output}: cannot lock {path}: {reason}", remedy=remedy) from error
    try:
        yield
    finally:
        with _guard:
            _release(path, descriptor)


def _acquire(path: Path, output: str) -> int:
    while True:
        _check_not_held(path, output)
        descriptor = _opened(path)
        if descriptor is None:
            continue
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise _busy(output, owner) from None
        except OSError:
            os.close(descriptor)
            raise
        if is_at(descriptor, path):  # its last owner may just have removed it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return descriptor
        os.close(descriptor)


def _opened(path: Path) -> int | None:
    """The lock file, new or as it is; None where it went meanwhile."""
    try:
        return create(path)
    except FileExistsError:
        try:
            return open_own(path)
        except FileNotFoundError:
            return None


def _check_not_held(path: Path, output: str) -> None:
    with suppress(FileNotFoundError):
        if _identity(os.lstat(path)) in _held:
            raise _busy(output, "another thread of this process")


def _release(path: Path, descriptor: int) -> None:
    identity = _identity(os.fstat(descriptor))
    if identity in _held and is_at(descriptor, path):  # a forked child that comes here holds nothing
        with suppress(OSError):
            os.unlink(path)  # while it is held: who opened it meanwhile sees that it is gone and starts over
    _held.discard(identity)
    os.close(descriptor)


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _busy(output: str, owner: str) -> BusyError:
    return BusyError(f"{output} is being written by {owner}", remedy="wait for it to end or choose another output")
