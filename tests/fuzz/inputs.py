"""What the bytes of one fuzzing input stand for.

The first byte says what the rest is: s, a whole shard; f, payloads to be framed into one; else payloads to be decoded.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from tests import shards
from tests.fuzz import check

BORDER = b"\xff\xfe\xfd"
_PATH = str(Path(tempfile.gettempdir(), f"yt8m-fuzz-{os.getpid()}.tfrecord"))


def try_input(data: bytes) -> None:
    """Raises whatever is wrong."""
    kind, rest = data[:1], data[1:]
    if kind == b"s":
        check.agree_on_shard(rest, _PATH)
    elif kind == b"f":
        check.agree_on_shard(b"".join(map(shards.frame, rest.split(BORDER))), _PATH)
    else:
        check.agree([*rest.split(BORDER), *check.GOOD])
