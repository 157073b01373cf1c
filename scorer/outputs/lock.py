"""One output, one owner: a lock that the kernel drops when its holder dies, however it dies.

A POSIX record lock (fcntl), since it belongs to the process: decoding workers that outlive a killed parent do not
inherit it, and it holds on network file systems that support locks at all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scorer.errors import OutputError, ResumeError
from scorer.outputs.atomic import is_at

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)
# A link that someone else placed in a folder open to all would have its target emptied.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


@contextmanager
def owned(path: Path, output: str) -> Iterator[None]:
    """Hold the lock file `path` for the output named `output`; the file is gone afterwards.

    Raises:
        ResumeError: another live process holds it; the message says which.
        OutputError: the lock file cannot be made or is a symbolic link, or the file system has no locks.
    """
    try:
        descriptor = _acquire(path, output)
    except OSError as error:
        reason = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        remedy = "write to a local folder" if error.errno in _NO_LOCKS else "mend that or choose another output"
        raise OutputError(f"{output}: cannot lock {path}: {reason}", remedy=remedy) from error
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)  # while it is held: who opened it meanwhile sees that it is gone and starts over
        os.close(descriptor)


def _acquire(path: Path, output: str) -> int:
    while True:
        descriptor = os.open(path, _FLAGS, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            owner = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise ResumeError(
                f"{output} is being written by {owner}", remedy="wait for it to end or choose another output"
            ) from None
        except OSError:
            os.close(descriptor)
            raise
        if is_at(descriptor, path):  # its last owner may just have removed it
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return descriptor
        os.close(descriptor)
