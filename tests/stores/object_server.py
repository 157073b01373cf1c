"""A web server on loopback that keeps objects in memory, gives ranges of them, and breaks on purpose.

It answers GET and HEAD as Amazon S3 does, so that clients of either kind read from it. There is no listing.
"""

from __future__ import annotations

import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from urllib.parse import unquote, urlsplit

from tests.stores.serving import serving

FAULTS = ("cut", "cut at once", "reset", "500", "503", "slow", "truncate", "ignore range", "too long")
"""And "silent": half of the bytes, and then nothing until the client gives up."""


class ObjectServer:
    """objects: content by path. faults: what goes wrong with the next requests for more than a byte, in order; ""
    is nothing. seen: the requests: method, path, range.
    watch: is told the path of each request for more than a byte. status: that all requests get, 0 for what is right.
    seconds: that each takes before it is answered.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: deque[str] = deque()
        self.seen: list[tuple[str, str, str]] = []
        self.authorizations: set[str] = set()
        self.status, self.seconds = 0, 0.0
        self.watch: Callable[[str], None] = lambda path: None
        self.etags: dict[str, str] = {}
        self._puts = 0

    def put(self, path: str, content: bytes) -> None:
        """As the object that all requests from now on are answered from."""
        self.objects[path] = content
        self._puts += 1
        self.etags[path] = f'"{zlib.crc32(content):08x}-{self._puts}"'

    @contextmanager
    def running(self) -> Iterator[str]:
        """Its address."""
        outer = self

        class Handler(_Handler):
            store = outer

        with serving(Handler) as address:
            yield address


class _Handler(BaseHTTPRequestHandler):
    store: ObjectServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        store, path = self.store, unquote(urlsplit(self.path).path)
        time.sleep(store.seconds)
        wanted = self.headers.get("Range", "")
        store.seen.append((self.command, self.path, wanted))
        store.authorizations.add(self.headers.get("Authorization", ""))
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
        start, last = (int(found[1]), int(found[2])) if found else (0, 1 << 62)
        if last > start:
            store.watch(path)
        fault = store.faults.popleft() if body and last > start and store.faults else ""
        if store.status or fault in ("500", "503"):
            self._plain(store.status or int(fault))
        elif fault == "reset":
            self.close_connection = True
        elif path not in store.objects:
            self._plain(404)
        elif found and start >= len(store.objects[path]):
            self._plain(416, {"Content-Range": f"bytes */{len(store.objects[path])}"})
        else:
            self._object(path, start, last, fault, partial=bool(found), body=body)

    def _plain(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _object(self, path: str, start: int, last: int, fault: str, *, partial: bool, body: bool) -> None:
        content = self.store.objects[path]
        if fault == "ignore range":
            start, last, partial = 0, 1 << 62, False
        data = content[start : last + 1]
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{len(content)}")
        if fault == "truncate":
            data = data[: len(data) // 3]
        if fault == "too long":
            data += b"more"
        self.send_header("ETag", self.store.etags[path])
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self._send(data, fault)

    def _send(self, data: bytes, fault: str) -> None:
        if fault == "silent":
            self.wfile.write(data[: len(data) // 2])
            self.connection.recv(1)
            self.close_connection = True
            return
        if fault in ("cut", "cut at once"):
            data = data[: len(data) // 2] if fault == "cut" else b""
            self.close_connection = True
        pieces = 20 if fault == "slow" else 1
        size = -(-len(data) // pieces) or 1
        try:
            for at in range(0, len(data), size):
                self.wfile.write(data[at : at + size])
                time.sleep(0.005 if pieces > 1 else 0)
        except ConnectionError:
            self.close_connection = True
