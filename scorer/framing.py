"""TFRecord framing: where the records of a shard lie, with both CRC32C checks always on.

A shard is a sequence of `uint64 length | uint32 masked CRC32C of the length | payload | uint32 masked CRC32C of the
payload`, all little-endian (tensorflow/core/lib/io/record_writer.h). A length that fails its CRC loses everything
after it, because nothing else says where the next record starts; a payload that fails its CRC loses one record.

Shards are read in blocks and never mapped: a mapped file that shrinks kills the process that reads it.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

from scorer.errors import InputError, RecordError, ShardError

BLOCK_BYTES = 1 << 19
"""Bytes read at once: a block and what is made of it stay in a core's cache."""
MAX_RECORD_BYTES = 8 << 20
"""A longer payload is checked piecewise and refused, so that no shard can fill the memory."""
MAX_BLOCK_RECORDS = 4096

_HEADER, _FOOTER = 12, 4
_DOWNLOAD = "download the shard again, or use --on-error skip"


@dataclass
class Frames:
    """The records found in one block of a shard.

    block: the bytes read; `offset` is the place of its first byte in the file, `record` the index of its first record.
    starts: int64 (n,) where each payload starts within `block`.
    lengths: int64 (n,) payload bytes.
    bad: errors of single records by their row in `starts`; such a record's bytes must not be used.
    end: byte of the file at which the next record starts.
    last: whether nothing comes after this block.
    lost: why nothing from `end` on can be read; None when the shard goes on or is at its end.
    """

    block: bytes
    offset: int
    record: int
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    end: int
    last: bool = False
    bad: dict[int, ShardError | RecordError] = field(default_factory=dict)
    lost: ShardError | None = None

    def __len__(self) -> int:
        return len(self.starts)

    def payload(self, row: int) -> bytes:
        first = int(self.starts[row])
        return self.block[first : first + int(self.lengths[row])]

    def place(self, row: int) -> tuple[int, int]:
        """Index in the shard and first byte in the file of the record of row `row`, which may be len(self)."""
        byte = self.end if row == len(self) else self.offset + int(self.starts[row]) - _HEADER
        return self.record + row, byte


class Shard:
    """One open TFRecord file; a context manager.

    Raises InputError when the file is absent, unreadable or no regular file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            _check_regular(path)
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be opened: {_why(error)}", remedy="check the path") from None
        self._state = os.fstat(self._file.fileno())
        self.size = self._state.st_size

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def check_unchanged(self) -> None:
        """Raise InputError when the file's size or time stamp is no longer what it was when it was opened."""
        now = os.fstat(self._file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._state.st_size, self._state.st_mtime_ns):
            raise InputError(
                f"{self.path}: changed while it was read ({self.size} bytes then, {now.st_size} now)",
                remedy="run again once nothing writes to it",
            )

    def blocks(self, offset: int = 0, record: int = 0) -> Iterator[Frames]:
        """The records from byte `offset` on, block by block; `record` is the index of the one at `offset`.

        Only the last block has `last`, and perhaps `lost`, set. Raises InputError when the file cannot be read, shrank,
        or has no byte `offset`.
        """
        if offset > self.size:
            raise InputError(f"{self.path}: has {self.size} bytes, but byte {offset} was to come next: it has changed")
        frames = self.frames(offset, record)
        yield frames
        while not frames.last:
            frames = self.frames(frames.end, frames.record + len(frames))
            yield frames

    def frames(self, offset: int, record: int) -> Frames:
        """One block: at least one record, unless `offset` is the end or the rest is lost."""
        if self.size == 0:
            return self._rest_is_lost(offset, record, "the file is empty")
        block = self._read(offset, BLOCK_BYTES)
        frames = self._scan(block, offset, record)
        return frames if len(frames) or frames.last else self._first(block, offset, record)

    def _scan(self, block: bytes, offset: int, record: int) -> Frames:
        """The whole records at the start of `block`, payload CRCs checked."""
        view, size = memoryview(block), len(block)
        starts: list[int] = []
        sums: list[int] = []
        place = 0
        while len(starts) < MAX_BLOCK_RECORDS:
            length = _LENGTHS[block[place : place + _HEADER]]
            start = place + _HEADER
            stop = start + length
            if length < 0 or stop + _FOOTER > size:
                break
            sums.append(crc32c(view[start:stop]))
            starts.append(start)
            place = stop + _FOOTER
        begins = np.array([*starts, place + _HEADER], np.int64)
        lengths = begins[1:] - begins[:-1] - (_HEADER + _FOOTER)
        end = offset + place
        frames = Frames(block, offset, record, begins[:-1], lengths, end, last=end == self.size)
        for row in _mismatches(block, frames, np.array(sums, np.uint32)).tolist():
            frames.bad[row] = self._payload_error(offset + starts[row] - _HEADER, record + row)
        return frames

    def _first(self, block: bytes, offset: int, record: int) -> Frames:
        """What to make of a block that does not hold its first record whole."""
        length, left = _LENGTHS[block[:_HEADER]], self.size - offset
        if left < _HEADER:
            return self._rest_is_lost(offset, record, f"truncated: {left} of a header's {_HEADER} bytes")
        if length < 0:
            return self._bad_length(block, offset, record)
        if length > left - _HEADER - _FOOTER:
            reason = f"truncated: a record of {length} bytes, of which the file holds {max(left - _HEADER, 0)}"
            return self._rest_is_lost(offset, record, reason)
        if length > MAX_RECORD_BYTES:
            return self._too_long(offset, record, length)
        return self._scan(self._read(offset, _HEADER + length + _FOOTER), offset, record)

    def _bad_length(self, block: bytes, offset: int, record: int) -> Frames:
        if offset == 0:
            reason, remedy = _what_else(block)
            return self._rest_is_lost(offset, record, reason, remedy)
        return self._rest_is_lost(offset, record, "the length fails its CRC32C, and with it all that follows is lost")

    def _rest_is_lost(self, offset: int, record: int, reason: str, remedy: str = _DOWNLOAD) -> Frames:
        lost = ShardError(self.path, reason, record=record, offset=offset, remedy=remedy)
        none = np.zeros(0, np.int64)
        return Frames(b"", offset, record, none, none, offset, last=True, lost=lost)

    def _too_long(self, offset: int, record: int, length: int) -> Frames:
        """A record longer than MAX_RECORD_BYTES: checked piecewise, then refused."""
        place, left, check = offset + _HEADER, length, 0
        while left:
            piece = self._read(place, min(left, BLOCK_BYTES))
            check = crc32c(piece, check)
            place, left = place + len(piece), left - len(piece)
        (stored,) = struct.unpack("<I", self._read(place, _FOOTER))
        error: ShardError | RecordError = self._payload_error(offset, record)
        if stored == _mask(check):
            reason = f"the record's {length} bytes are more than the {MAX_RECORD_BYTES} that are read"
            error = RecordError(self.path, reason, record=record, offset=offset, remedy="use --on-error skip")
        starts, end = np.full(1, _HEADER, np.int64), place + _FOOTER
        return Frames(b"", offset, record, starts, np.zeros(1, np.int64), end, last=end == self.size, bad={0: error})

    def _payload_error(self, offset: int, record: int) -> ShardError:
        reason = "the payload fails its CRC32C"
        return ShardError(self.path, reason, record=record, offset=offset, remedy=_DOWNLOAD)

    def _read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer only at the end that the file had when it was opened."""
        count = min(count, self.size - offset)
        try:
            self._file.seek(offset)
            block = self._file.read(count)
            while len(block) < count:
                more = self._file.read(count - len(block))
                if not more:
                    self.check_unchanged()
                    raise InputError(f"{self.path}: ends at byte {offset + len(block)} of {self.size}")
                block += more
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read at byte {offset}: {_why(error)}") from None
        return block


class _Lengths(dict[bytes, int]):
    """The payload length that a 12-byte record header states, or -1 when it fails its CRC or is cut short.

    Shards have few different lengths, so that a header seen before needs no second CRC.
    """

    def __missing__(self, header: bytes) -> int:
        if len(header) < _HEADER:
            return -1
        length, stored = struct.unpack("<QI", header)
        if stored != _mask(crc32c(header[:8])):
            return -1
        if len(self) >= 1 << 16:
            self.clear()
        self[header] = length
        return int(length)


_LENGTHS = _Lengths()


def _mask(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _mismatches(block: bytes, frames: Frames, sums: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Rows whose payload CRC is not the one stored behind the payload."""
    if not len(frames):
        return np.zeros(0, np.int64)
    words: NDArray[np.uint32] = np.ndarray((len(block) - 3,), "<u4", block, strides=(1,))
    masked = (sums >> 15 | sums << 17) + np.uint32(0xA282EAD8)
    return np.flatnonzero(words[frames.starts + frames.lengths] != masked)


def _check_regular(path: str) -> None:
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise ValueError("it is a folder; name the shards in it")
    if not stat.S_ISREG(mode):
        raise ValueError("it is no regular file")


def _why(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


_KNOWN_STARTS = (
    (b"\x1f\x8b", "it is compressed with gzip", "unpack it first (gunzip)"),
    (b"version https://git-lfs", "it is a Git LFS pointer", "fetch the file itself (git lfs pull)"),
    (b"<", "it looks like an HTML or XML page", "download it again"),
)


def _what_else(block: bytes) -> tuple[str, str]:
    """Reason and remedy for a file whose very first length fails its CRC."""
    for magic, what, remedy in _KNOWN_STARTS:
        if block.startswith(magic):
            return f"not a TFRecord file: {what}", remedy
    return "not a TFRecord file, or its first length is damaged (CRC32C)", _DOWNLOAD
