"""Journals with other lines: whole ones, as a forger would write them, or somebody by mistake."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from crc32c import crc32c


def entries(path: Path) -> list[dict[str, Any]]:
    """What stands in each line, without its checksum."""
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [{key: value for key, value in line.items() if key != "crc32c"} for line in lines]


def as_journal(lines: Iterable[object]) -> bytes:
    """A line for each, an object or its bytes, with the CRC32C of all that stands before it."""
    found = b""
    for line in lines:
        text = line if isinstance(line, bytes) else json.dumps(line, separators=(",", ":")).encode()
        found += text.removesuffix(b"}")
        found += b',"crc32c":"%08x"}\n' % crc32c(found)
    return found


def add_line(path: Path, line: object) -> None:
    """Add one line that is whole."""
    path.write_bytes(as_journal([*entries(path), line]))
