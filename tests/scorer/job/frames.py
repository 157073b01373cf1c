"""Part files taken apart and written again, with checksums that are right whatever is in them."""

from __future__ import annotations

from collections.abc import Sequence

from crc32c import crc32c

_HEAD, _CRC, _END = 9, 4, b"E"


def frames_of(data: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """The first line of a part file, and kind and payload of each frame."""
    first, _, rest = data.partition(b"\n")
    found: list[tuple[bytes, bytes]] = []
    while len(rest) > _HEAD and not (found and found[-1][0] == _END):
        length = int.from_bytes(rest[1:_HEAD], "little")
        found.append((rest[:1], rest[_HEAD : _HEAD + length]))
        rest = rest[_HEAD + length + _CRC :]
    return first + b"\n", found


def written(first: bytes, frames: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The reverse."""
    out, end = first, 0
    for kind, payload in frames:
        end = len(out) if kind == _END else end
        frame = kind + len(payload).to_bytes(8, "little") + payload
        out += frame + crc32c(frame).to_bytes(_CRC, "little")
    return out + (end.to_bytes(8, "little") if frames and frames[-1][0] == _END else b"")
