"""Work files in a folder where others may write: none is opened that is not a plain file of this user's alone."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe in the file's place must not be waited for


def create(path: Path) -> int:
    """A descriptor of the new file `path`, to read and write. Raises OSError; FileExistsError for a link too."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FLAGS, 0o666)


class NotOwnError(OSError):
    """What is at a path is not a regular file, is a link, has a second name or belongs to another user."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(errno.EPERM, f"{path} {reason}")
        self.reason = reason


def open_own(path: Path, flags: int = os.O_RDWR) -> int:
    """A descriptor of the file `path`.

    Raises:
        NotOwnError: it is not a regular file of this user's alone.
        OSError: as the system reports it.
    """
    try:
        descriptor = os.open(path, flags | _FLAGS)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotOwnError(path, "is a symbolic link") from None
        raise
    try:
        _check(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def check_own(path: Path) -> None:
    """Raise NotOwnError as `open_own` does."""
    _check(path, os.lstat(path))


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise NotOwnError(path, "is not a regular file")
    if status.st_nlink > 1:  # one without a name was just removed by its owner
        raise NotOwnError(path, "has another name too (a hard link)")
    if status.st_uid != os.geteuid():
        raise NotOwnError(path, "belongs to another user")
