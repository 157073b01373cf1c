"""Every other kind of address (hdfs, sftp, zip within another, ...) through fsspec, with the client that it names."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from fsspec.core import url_to_fs

from scorer.inputs.folders import is_shard
from scorer.inputs.source import FileStat
from scorer.inputs.stores import MAGIC, TransientError

_VERSIONS = ("ETag", "etag", "mtime", "modified", "LastModified", "last_modified", "created")


class FsspecStore:
    """See scorer.inputs.stores.Store."""

    def stat(self, url: str) -> FileStat:
        with _translated():
            fs, path = url_to_fs(url)
            fs.invalidate_cache()
            return _stat(fs.info(path))

    @contextmanager
    def read(self, url: str, start: int, stop: int) -> Iterator[tuple[FileStat, Iterable[bytes]]]:
        with _translated():
            fs, path = url_to_fs(url)
            piece = fs.cat_file(path, start=start, end=stop)
        yield self.stat(url), [piece]  # after it: a change before is seen

    def find(self, url: str) -> list[tuple[str, FileStat]]:
        with _translated():
            fs, path = url_to_fs(url)
            fs.invalidate_cache()
            if not MAGIC.search(path):
                info = fs.info(path)
                if info["type"] != "directory":
                    return [(url, _stat(info))]
                inside = fs.glob(posixpath.join(path, "*"), detail=True)
                found = {name: info for name, info in inside.items() if is_shard(name)}
            else:
                found = fs.glob(path, detail=True)
            files = sorted((name, info) for name, info in found.items() if info["type"] != "directory")
            return [(_with_path(url, path, name) or fs.unstrip_protocol(name), _stat(info)) for name, info in files]


def _with_path(url: str, path: str, name: str) -> str | None:
    """`url`, in which `path` stands at the end of its first link, with `name` there; None where it stands otherwise."""
    first, separator, rest = url.partition("::")
    return first.removesuffix(path) + name + separator + rest if first.endswith(path) else None


@contextmanager
def _translated() -> Iterator[None]:
    """Turn what a client raises into OSErrors of one line. What says nothing of itself may be transient."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError("no such file") from None
    except PermissionError as error:
        raise PermissionError(_first_line(error)) from None
    except (ImportError, TransientError):
        raise
    except (NotImplementedError, ValueError) as error:
        unknown = str(error).startswith("Protocol not known")
        raise (FileNotFoundError if unknown else OSError)(_first_line(error)) from None
    except Exception as error:
        if "libhdfs" in str(error):
            raise ImportError("Hadoop's libhdfs is not found (HADOOP_HOME, CLASSPATH)") from None
        raise TransientError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _stat(info: Any) -> FileStat:
    version = next((str(info[name]) for name in _VERSIONS if info.get(name) is not None), "")
    return FileStat(int(info["size"]), version)
