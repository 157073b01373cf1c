"""Addresses such as s3://bucket/key, and what of them may be shown: no password, no key, no signature."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit, urlunsplit

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_SECRET = re.compile(r"sig|token|secret|password|passwd|credential|key|auth", re.IGNORECASE)
_ACCOUNTS = {"abfs", "abfss", "adl", "az", "azure", "wasb", "wasbs"}
"""Schemes whose `name@host` is a container in an account."""


def is_address(name: str) -> bool:
    """Whether `name` is an address and not a path."""
    return _ADDRESS.match(name) is not None


def scheme_of(address: str) -> str:
    """In lower case; of a chain (zip://a::s3://b) the first."""
    return re.split("::|://", address, maxsplit=1)[0].lower()


def redacted(text: str) -> str:
    """`text` without the password, keys or signature of the address that it is; a path as it is."""
    if not is_address(text):
        return text
    return "::".join(map(_redacted, text.split("::")))


def _redacted(address: str) -> str:
    try:
        parts = urlsplit(address)
    except ValueError:  # a bracket that is not closed
        return address.partition("://")[0] + "://..."
    netloc = parts.netloc if parts.scheme in _ACCOUNTS else _without_password(parts.netloc)
    secret = any(_SECRET.search(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True))
    if not secret and netloc == parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=netloc, query="" if secret else parts.query))


def _without_password(netloc: str) -> str:
    user, _, host = netloc.rpartition("@")
    return f"{user.partition(':')[0]}:***@{host}" if ":" in user else netloc
