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


def open_own(path: Path, flags: int = os.O_RDWR) -> int:
    """A descriptor of the file `path`.

    Raises:
        OSError: as the system reports it, ELOOP for a link; EPERM for what is not a regular file, has a second name
            (hard link) or belongs to another user.
    """
    descriptor = os.open(path, flags | _FLAGS)
    if reason := _foreign(os.fstat(descriptor)):
        os.close(descriptor)
        raise OSError(errno.EPERM, f"{path} {reason}")
    return descriptor


def _foreign(status: os.stat_result) -> str:
    """Why a file is not this user's alone; empty where it is. One without a name was just removed by its owner."""
    if not stat.S_ISREG(status.st_mode):
        return "is not a regular file"
    if status.st_nlink > 1:
        return "has another name too (a hard link)"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    return ""
