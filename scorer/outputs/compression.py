"""Compressed outputs: a member for each MiB of rows, so that the same rows give the same bytes however they came.

Members stand by themselves. Several threads make them, and a reader of the whole sees one stream.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import BinaryIO, TypeAlias

from scorer.outputs.row_format import Pack
from scorer.system.cores import usable_cores
from scorer.system.packages import required
from scorer.system.threads import map_in_order

Compress: TypeAlias = Callable[[bytes], bytes]

_MEMBER_BYTES = 1 << 20
_GZIP_LEVEL, _ZSTD_LEVEL = 6, 3  # the programs' own
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, no time, no system


def packing_with(compress: Compress) -> Pack:
    """Packs rows into members that `compress` makes."""

    def pack(rows: BinaryIO, write: Callable[[bytes], object]) -> None:
        blocks = iter(lambda: rows.read(_MEMBER_BYTES), b"")
        with closing(map_in_order(compress, blocks, usable_cores(), "compress")) as members:
            for member in members:
                write(member)
        if not rows.tell():  # an empty file is none that a reader knows
            write(compress(b""))

    return pack


def gzip_compressor() -> Compress:
    """A member as RFC 1952 has it."""

    def compress(data: bytes) -> bytes:
        deflate = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        end = struct.pack("<II", zlib.crc32(data), len(data))
        return _GZIP_HEADER + deflate.compress(data) + deflate.flush() + end

    return compress


def zstd_compressor() -> Compress:
    """A frame as RFC 8878 has it. Raises UsageError where pyarrow, whose codec it is, is absent."""
    pyarrow = required("pyarrow", "parquet", "zst")

    def compress(data: bytes) -> bytes:
        codec = pyarrow.Codec("zstd", _ZSTD_LEVEL)  # one serves one thread
        return bytes(codec.compress(data, asbytes=True))

    return compress


COMPRESSIONS: Mapping[str, Callable[[], Compress]] = {"gz": gzip_compressor, "zst": zstd_compressor}
"""By the end of a file's name. They raise UsageError where a package is absent."""
