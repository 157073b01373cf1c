"""What a command writes to a terminal."""

from __future__ import annotations

import os


def read_terminal(descriptor: int, until: bytes = b"") -> bytes:
    """What is written to a terminal, to the end or until there is `until` in it; `descriptor` is our side of it."""
    text = b""
    while not until or until not in text:
        try:
            part = os.read(descriptor, 1 << 16)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        text += part
    return text
