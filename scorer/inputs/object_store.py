"""Object stores (Amazon S3 and its like, Google's, Azure's) through obstore, which is Rust's object_store.

Credentials are obstore's business: environment variables, web identity, the machine's own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from scorer.inputs.folders import is_shard
from scorer.inputs.source import FileStat
from scorer.inputs.stores import MAGIC, TransientError

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_ENDPOINT", "GOOGLE_BASE_URL")
_PIECE = 1 << 20
_STATUS = re.compile(r"status code: (\d+)([A-Za-z ]*)")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_TRY_AGAIN = {408, 425, 429}


def open_store(root: str, **options: Any) -> Any:
    """obstore's store of `root`, scheme://bucket."""
    endpoints = {name: value for name in _ENDPOINTS if (value := os.environ.get(name)) is not None}
    for name, value in endpoints.items():
        if not value.startswith(("http://", "https://")):
            raise OSError(f"{name} is {value!r}, no address of a server")
    plain = any(value.startswith("http://") for value in endpoints.values())  # the user's own choice
    client = {"allow_http": plain, "connect_timeout": "10s", "read_timeout": "30s", "timeout": "300s"}
    opened: Any = from_url  # its overloads tell stores apart by options that are not given here
    with translated():
        return opened(root, client_options=client, **options)


@contextmanager
def translated() -> Iterator[None]:
    """Turn obstore's errors into OSErrors of one line."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError("no such object") from None
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(f"the store refuses it: {_reason(error)}") from None
    except BaseError as error:
        raise _kind(error)(_reason(error)) from None


def _kind(error: Exception) -> type[OSError]:
    found = _STATUS.search(str(error))
    status = int(found[1]) if found else 0
    if status in (401, 403):
        return PermissionError
    if status == 404:  # of a listing
        return FileNotFoundError
    return OSError if 400 <= status < 500 and status not in _TRY_AGAIN else TransientError


def _reason(error: Exception) -> str:
    """What the store answered, in a few words, or what obstore says of it."""
    text = str(error)
    found, code = _STATUS.search(text), _CODE.search(text)
    if not found:
        line = re.sub(r"^Generic \w+ error: | in [0-9.]+\S+(?= - )", "", text.splitlines()[0])
        return re.sub(r"(https?://[^\s?]*)\?\S*", r"\1", line).removesuffix(": ").strip()  # a query may have a key
    answer = f"HTTP status {found[1]}{found[2]}".rstrip()
    return f"{answer} ({code[1]})" if code else answer


class ObjectStore:
    """See scorer.inputs.stores.Store; the addresses are those of one bucket."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._store = open_store(root, retry_config={"max_retries": 0})  # who reads retries, from the byte reached

    def stat(self, url: str) -> FileStat:
        with translated():
            return _stat(obstore.head(self._store, self._key(url)))

    @contextmanager
    def read(self, url: str, start: int, stop: int) -> Iterator[tuple[FileStat, Iterable[bytes]]]:
        with translated():
            result = obstore.get(self._store, self._key(url), options={"range": (start, stop)})
            yield _stat(result.meta), result.stream(min_chunk_size=_PIECE)

    def find(self, url: str) -> list[tuple[str, FileStat]]:
        key = self._key(url)
        if MAGIC.search(key):
            return self._matching(key)
        folder = key.rstrip("/")
        if folder == key:
            try:
                return [(url, self.stat(url))]
            except FileNotFoundError:
                pass
        with self._listing():
            inside = obstore.list_with_delimiter(self._store, folder or None)
        if not inside["objects"] and not inside["common_prefixes"]:
            raise FileNotFoundError("no such file")
        return self._named(meta for meta in inside["objects"] if is_shard(meta["path"]))

    def _matching(self, pattern: str) -> list[tuple[str, FileStat]]:
        """What a pattern matches: `*` and `?` within a folder, `**` over folders."""
        plain = MAGIC.split(pattern, maxsplit=1)[0].rpartition("/")[0]
        matches = glob_pattern(pattern).fullmatch
        with self._listing():
            found = [meta for some in obstore.list(self._store, plain or None) for meta in some]
        return self._named(meta for meta in found if matches(meta["path"]))

    def check_bucket(self, url: str) -> None:
        """Raise FileNotFoundError where there is no bucket for `url`, OSError where that cannot be found out."""
        with self._listing():
            next(iter(obstore.list(self._store, self._key(url), chunk_size=1)), None)

    @contextmanager
    def _listing(self) -> Iterator[None]:
        try:
            with translated():
                yield
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no {self._root}") from None

    def _named(self, objects: Iterable[Any]) -> list[tuple[str, FileStat]]:
        return sorted((f"{self._root}/{meta['path']}", _stat(meta)) for meta in objects)

    def _key(self, url: str) -> str:
        return url.partition("://")[2].partition("/")[2]


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """A pattern as the shell knows it, `**` for any number of folders, as a regular expression."""
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[!?\]?[^]]*\])", pattern)
    return re.compile("".join(_translated(token, parts) for token in tokens), re.DOTALL)


def _translated(token: str, parts: dict[str, str]) -> str:
    if token.startswith("[") and token.endswith("]") and len(token) > 2:
        inside = token[1:-1].replace("\\", r"\\")
        return f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
    return parts.get(token) or re.escape(token)


def _stat(meta: Any) -> FileStat:
    return FileStat(meta["size"], (meta["e_tag"] or meta["last_modified"].isoformat()).removeprefix("W/").strip('"'))
