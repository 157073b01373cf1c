"""Files on web servers that give ranges of them, with Python's own client, which knows proxies and redirects."""

from __future__ import annotations

import base64
import http.client
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from scorer.inputs.source import FileStat
from scorer.inputs.stores import TransientError

_PIECE = 1 << 20
_SECONDS = 30
"""Without a byte, after which a request is given up."""
_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")
_TRY_AGAIN = {408, 425, 429}
_NOT_SATISFIABLE = 416


class HttpStore:
    """See scorer.inputs.stores.Store. HEAD is never asked for: a signed address often allows GET alone."""

    def stat(self, url: str) -> FileStat:
        with closing(_get(url, 0, 1)) as response:
            return _stat(response)

    @contextmanager
    def read(self, url: str, start: int, stop: int) -> Iterator[tuple[FileStat, Iterable[bytes]]]:
        with closing(_get(url, start, stop)) as response:
            yield _stat(response), _pieces(response, stop - start)

    def find(self, url: str) -> list[tuple[str, FileStat]]:
        if urlsplit(url).path.endswith("/"):
            raise OSError("a web server does not list its files: name each, in a list perhaps")
        return [(url, self.stat(url))]


def _get(url: str, start: int, stop: int) -> Any:
    """The response that gives bytes `start` to `stop` - 1, or as many as there are."""
    plain, headers = _request(url)
    headers |= {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    try:
        response = urllib.request.urlopen(urllib.request.Request(plain, headers=headers), timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == _NOT_SATISFIABLE and start == 0:
            return error  # a file without a byte
        with closing(error):
            raise _error(error.code, error.reason) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        raise TransientError(str(getattr(error, "reason", error)) or type(error).__name__) from None
    found = _RANGE.match(response.headers.get("Content-Range", ""))
    if response.status != http.client.PARTIAL_CONTENT or not found or int(found[1] or -1) != start:
        if response.status == http.client.OK and response.headers.get("Content-Length") == "0":
            return response
        response.close()
        raise TransientError("the server ignores the range that was asked for")
    return response


def _error(code: int, reason: str) -> OSError:
    text = f"HTTP status {code} {reason}".strip()
    if code in (http.client.NOT_FOUND, http.client.GONE):
        return FileNotFoundError("no such file")
    if code in (http.client.UNAUTHORIZED, http.client.FORBIDDEN):
        return PermissionError(text)
    return TransientError(text) if code >= 500 or code in _TRY_AGAIN else OSError(text)


def _request(url: str) -> tuple[str, dict[str, str]]:
    """The address without user and password, and the header that says them."""
    parts = urlsplit(url)
    user, at, host = parts.netloc.rpartition("@")
    path = quote(parts.path, safe="/%:=&?~#+!$,;'@()*[]")
    plain = urlunsplit(parts._replace(netloc=host, path=path, fragment=""))
    if not at:
        return plain, {}
    return plain, {"Authorization": "Basic " + base64.b64encode(unquote(user).encode()).decode()}


def _stat(response: Any) -> FileStat:
    headers = response.headers
    found = _RANGE.match(headers.get("Content-Range", ""))
    size = int(found[3]) if found else 0
    return FileStat(size, headers.get("ETag") or headers.get("Last-Modified") or "")


def _pieces(response: Any, count: int) -> Iterator[bytes]:
    while count > 0:
        try:
            piece = response.read(min(_PIECE, count))
        except (http.client.HTTPException, OSError) as error:
            raise TransientError(str(error) or type(error).__name__) from None
        if not piece:
            return  # whoever asked counts
        count -= len(piece)
        yield piece
