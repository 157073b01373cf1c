"""The sink that is an object in a store: the work on it is local, and what it made is sent at its end.

The work on s3://bucket/preds.csv goes to a folder of its own, `work_folder`, in the same files as that on a local
output, so that a job commits and resumes in the same way. At the end the rows become one object in one step, by
multipart upload where they are many, and the completion record another one after it; only then the work is removed.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scorer.errors import Hint, OutputError, Yt8mError
from scorer.inputs.addresses import redacted, scheme_of
from scorer.inputs.remote import OBJECT_SCHEMES, store_of
from scorer.outputs.embeddings import EmbeddingOutput
from scorer.outputs.file import FileSink, open_file
from scorer.outputs.paths import OutputPaths
from scorer.outputs.row_format import RowFormat
from scorer.outputs.sink import JobKey, ResumePolicy
from scorer.system.terminal import print_stderr

ONE_REQUEST_BYTES = 64 << 20
"""Up to so many bytes are sent in one request, of which nothing can be left; more in parts."""
_PART_BYTES, _MOST_PARTS, _IN_FLIGHT = 16 << 20, 9_000, 4
_RETRIES = {"max_retries": 6}


def check_object(address: str) -> None:
    """Say at once why nothing can be written there. Raises OutputError."""
    shown = redacted(address)
    if scheme_of(address) not in OBJECT_SCHEMES or "::" in address:
        reason = f"{shown}: outputs go to files or object stores"
        raise OutputError(reason, remedy="name one at s3://, gs:// or az://")
    if not _key(address) or address.endswith("/"):
        raise OutputError(f"{shown} names no object", remedy="name one, such as s3://bucket/preds.csv")
    try:
        _check_place(address)
    except Yt8mError as error:
        raise OutputError(error.message, remedy=error.remedy) from None
    except OSError as error:
        raise _refused(address, error) from None


def _check_place(address: str) -> None:
    """Raise OSError where the address may not be read, or has no bucket; who may not list one is believed."""
    try:
        store_of(address).stat(address)
    except FileNotFoundError:
        from scorer.inputs.object_store import ObjectStore

        with suppress(PermissionError):
            ObjectStore(_root(address)).check_bucket(address)


def work_folder(address: str) -> Path:
    """Where the work on the output at `address` goes: below XDG_STATE_HOME, or ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(state).absolute() / "yt8m-edge" / hashlib.sha256(address.encode()).hexdigest()[:16]


def work_paths(address: str) -> OutputPaths:
    """The files of that work."""
    return OutputPaths(work_folder(address) / _key(address).rpartition("/")[2], redacted(address))


@contextmanager
def open_object(
    address: str,
    key: JobKey,
    row_format: RowFormat,
    policy: ResumePolicy,
    embeddings: EmbeddingOutput | None = None,
) -> Iterator[FileSink]:
    """As `open_file`, for an output in a store; embeddings stay on this machine."""
    paths = work_paths(address)
    folder = paths.final.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{redacted(address)}: cannot make {folder} for the work on it: {error.strerror}"
        raise OutputError(reason, remedy="name another folder in XDG_STATE_HOME") from None
    try:
        publish = partial(_publish, address)
        with open_file(paths, key, row_format, policy, publish, embeddings) as sink:
            yield sink
    finally:
        with suppress(OSError):
            folder.rmdir()  # unless something is to be resumed there


def _publish(address: str, paths: OutputPaths, files: Mapping[Path, Path], record: bytes) -> None:
    """Send the output's files and then its record. See scorer.outputs.file.Publish."""
    from scorer.inputs.object_store import open_store

    try:
        store = open_store(_root(address), retry_config=_RETRIES)
        stale = {paths.done, paths.final_quarantine} - files.keys()  # what describes an older output
        _delete(store, [_beside(address, paths, name) for name in stale])
        for name, path in files.items():
            _send(store, address, _beside(address, paths, name), path)
        _put(store, _beside(address, paths, paths.done), record, use_multipart=False)
    except OSError as error:
        raise _refused(address, error, Hint.RESUME_LATER) from None


def _beside(address: str, paths: OutputPaths, name: Path) -> str:
    """The key of what is called `name` beside the output."""
    return _key(address) + name.name.removeprefix(paths.final.name)


def _delete(store: Any, keys: list[str]) -> None:
    import obstore

    from scorer.inputs.object_store import translated

    for key in keys:
        with suppress(FileNotFoundError), translated():
            obstore.delete(store, key)


def _send(store: Any, address: str, key: str, path: Path) -> None:
    size = path.stat().st_size
    if size <= ONE_REQUEST_BYTES:
        _put(store, key, path.read_bytes(), use_multipart=False)
        return
    marker = path.with_name(f"{path.name}.sending")
    if marker.exists():  # whoever sent it was killed; what fails otherwise is aborted
        print_stderr(f"{redacted(address)}: an upload was cut off, and what it left is billed; {_abort(address, key)}")
    marker.touch()
    try:
        with path.open("rb") as file:
            part = max(_PART_BYTES, -(-size // _MOST_PARTS))
            _put(store, key, file, use_multipart=True, chunk_size=part, max_concurrency=_IN_FLIGHT)
    finally:
        marker.unlink()


def _abort(address: str, key: str) -> str:
    """How to find and abort uploads of `key` that were cut off."""
    if not scheme_of(address).startswith("s3"):
        return "the store removes it by itself, or by a lifecycle rule"
    of = f"--bucket {shlex.quote(urlsplit(address).netloc)}"
    return (
        f"aws s3api list-multipart-uploads {of} --prefix {shlex.quote(key)} lists it, and aws s3api "
        f"abort-multipart-upload {of} --key {shlex.quote(key)} --upload-id ID aborts it"
    )


def _put(store: Any, key: str, content: Any, **options: Any) -> None:
    import obstore

    from scorer.inputs.object_store import translated

    with translated():
        obstore.put(store, key, content, **options)


def _root(address: str) -> str:
    return f"{scheme_of(address)}://{urlsplit(address).netloc}"


def _refused(address: str, error: OSError, *hints: Hint) -> OutputError:
    kinds = {PermissionError: "check the credentials", FileNotFoundError: "check the address"}
    remedy = kinds.get(type(error), "check the connection")
    reason = f"{redacted(address)}: cannot be written: {error.strerror or error}"
    return OutputError(reason, remedy=remedy, hints=hints)


def _key(address: str) -> str:
    return address.partition("://")[2].partition("/")[2]
