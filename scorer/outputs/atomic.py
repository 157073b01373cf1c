"""Files and folders that are absent or complete: made in a private folder beside, flushed to the disk, then renamed.

The private folder has a name that nobody can foresee and only its owner may enter it (mode 0700), so no link that
somebody else placed is written through, and two writers of one file never meet: the last to finish wins. While its
maker lives the folder is locked; what a killed one left is removed by the next writer of the same file.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from scorer.errors import Hint, OutputError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RANDOM_BYTES = 4
LONGER = len("..part") + 2 * _RANDOM_BYTES + 1
"""By how much the private folder's name is longer than the file's."""


@contextmanager
def writing(path: object, hints: tuple[Hint, ...] = ()) -> Iterator[None]:
    """Turn the system's errors about writing `path` into an OutputError with these hints."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.EMFILE, errno.ENFILE)
        remedy = "allow more open files (ulimit -n)" if full else "make room there or choose another place"
        reason = f"{path}: cannot be written: {error.strerror or error}"
        raise OutputError(reason, remedy=remedy, hints=hints) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end; where an error is raised, `path` stays as it was.

    The new file has the mode of the old one.

    Raises:
        OutputError: the system's errors about the steps here; those of the writing itself are not translated.
    """
    with _private_folder(path) as folder:
        part = folder / path.name
        yield part
        with writing(path):
            _keep_mode(path, part)
            sync(part)
            os.replace(part, path)
            sync_folder(path.parent)


def replace_bytes(path: Path, data: bytes) -> None:
    """Write a small file, whole or not at all. Raises OutputError."""
    with replacing(path) as part, writing(path):
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            write_all(descriptor, data)
        finally:
            os.close(descriptor)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill with files, which is `path` afterwards unless another process has made that meanwhile.

    Raises:
        OutputError: the system's errors about the steps here; those of the filling itself are not translated.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _private_folder(path) as private:
        part = private / path.name
        with writing(path):
            part.mkdir()
        yield part
        with writing(path):
            for file in part.iterdir():
                sync(file)
            sync_folder(part)
            _rename_folder(part, path)
            sync_folder(path.parent)


def write_all(descriptor: int, data: bytes) -> None:
    """Write `data`, however little of it the system takes at once."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` names the file or folder behind `descriptor`, now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Have what was written to the file `path` reach the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` survive a power loss, where its file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _private_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path`, gone at the end."""
    with writing(path):
        _remove_abandoned(path)
        folder, descriptor = _make_locked(path)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make_locked(path: Path) -> tuple[Path, int]:
    while True:
        folder = path.with_name(f".{path.name}.{os.urandom(_RANDOM_BYTES).hex()}.part")
        os.mkdir(folder, 0o700)
        with suppress(FileNotFoundError):  # another writer took it for abandoned, in the moment before it is locked
            descriptor = os.open(folder, _FOLDER)
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if is_at(descriptor, folder):
                return folder, descriptor
            os.close(descriptor)


def _remove_abandoned(path: Path) -> None:
    """Remove private folders of `path` that are ours and that no living process holds."""
    ours = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}\.part")
    for name in filter(ours.fullmatch, os.listdir(path.parent)):
        with suppress(OSError):
            descriptor = os.open(path.parent / name, _FOLDER)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(path.parent / name)
            finally:
                os.close(descriptor)


def _keep_mode(old: Path, new: Path) -> None:
    with suppress(FileNotFoundError):
        status = os.lstat(old)
        if stat.S_ISREG(status.st_mode):
            os.chmod(new, stat.S_IMODE(status.st_mode))


def _rename_folder(part: Path, path: Path) -> None:
    try:
        os.rename(part, path)
    except OSError:
        if not path.is_dir():
            raise
