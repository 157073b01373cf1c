"""A server on loopback that hands requests on to another, and refuses or cuts some of them.

A request in Google's name becomes one in Amazon's: an S3 server behind it does for Cloud Storage, since the scorer's
requests are the same in both.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from tests.stores.serving import serving

Verdict = Literal["", "cut", "403", "500"]
_AMAZONS = "AWS4-HMAC-SHA256 Credential=a/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=b"


def google_environment(url: str, folder: Path) -> dict[str, str]:
    """What a client needs for the server at `url` to be Google's Cloud Storage; a file of it goes to `folder`."""
    account = {"gcs_base_url": url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    (folder / "account.json").write_text(json.dumps(account))
    return {"GOOGLE_BASE_URL": url, "GOOGLE_SERVICE_ACCOUNT": str(folder / "account.json"), "NO_PROXY": "*"}


@contextmanager
def proxy(url: str, judge: Callable[[str, str], Verdict]) -> Iterator[str]:
    """The address of one before `url`. judge: from method and path to what becomes of a request; "" is all well."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def _hand_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            verdict = judge(self.command, self.path)
            if verdict == "cut":
                self.close_connection = True
                return
            if verdict:
                self.send_response(int(verdict))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            there = http.client.HTTPConnection(urlsplit(url).netloc)
            if not self.headers.get("Authorization", "").startswith("AWS4"):  # Google's, elsewhere Amazon's protocol
                del self.headers["Authorization"]
                self.headers["Authorization"] = _AMAZONS
            there.request(self.command, self.path, body, dict(self.headers))
            response = there.getresponse()
            content = response.read()
            there.close()
            self.send_response(response.status)
            for name, value in response.getheaders():
                if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                    self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _hand_on

    with serving(Handler) as address:
        yield address
