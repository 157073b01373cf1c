"""TFRecord framing: where the records of a shard lie, with both CRC32C checks always on.

A shard is a sequence of `uint64 length | uint32 masked CRC32C of the length | payload | uint32 masked CRC32C of the
payload`, all little-endian (tensorflow/core/lib/io/record_writer.h). A length that fails its CRC loses everything
after it, because nothing else says where the next record starts; a payload that fails its CRC loses one record.

Shards are read in blocks and never mapped: a mapped file that shrinks kills the process that reads it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.errors import Hint, RecordError, ShardError
from scorer.inputs.file_kinds import KIND_BYTES, kind_of
from scorer.inputs.records import BLOCK_BYTES as BLOCK_BYTES
from scorer.inputs.source import UNKNOWN_SIZE, Reader, Source
from scorer.inputs.staging import Stage, Window
from scorer.kernels import loops

MAX_BLOCK_RECORDS = 4096

_HEADER, _FOOTER = 12, 4
_SLACK = 1 << 10
_SEARCHED = 1 << 13  # bytes at a time that a record is looked for in
_DOWNLOAD = "download the shard again"


class Block:
    """A buffer for the bytes of one block, used again and again, because touching fresh memory costs more than reading.

    room: the bytes that may be read to. octets: uint8, every byte. words: int64, the eight bytes from every byte on.
    Both end a little after the data, so that what starts within it can be read without care.
    """

    def __init__(self) -> None:
        self.capacity = BLOCK_BYTES
        self.bytes = bytearray(self.capacity + _SLACK)
        self.view = memoryview(self.bytes)
        self.room = self.view[: self.capacity]
        self.octets: NDArray[np.uint8] = np.frombuffer(self.bytes, np.uint8)
        self.words: NDArray[np.int64] = self._from_every_byte("<i8")
        self.halves: NDArray[np.uint32] = self._from_every_byte("<u4")
        self._items: dict[int, NDArray[np.void]] = {}

    @cached_property
    def stage(self) -> Stage:
        """For sources that are no local files."""
        return Stage()

    def items(self, size: int) -> NDArray[np.void]:
        """The `size` bytes from every byte on; size is at most the capacity."""
        if size not in self._items:
            self._items[size] = self._from_every_byte(f"V{size}")
        return self._items[size]

    def _from_every_byte(self, kind: str) -> NDArray[Any]:
        count = len(self.bytes) - np.dtype(kind).itemsize + 1
        return np.ndarray((count,), kind, self.bytes, strides=(1,))


@dataclass
class FramedBlock:
    """The n records found in one block of a shard, valid until the next is read into the same block.

    block: holds the bytes; `offset` is where its first byte is in the file, `record` the index of its first record.
    bounds: int64 (n + 1,) where in the block each record starts, header and all, and where the last one ends.
    bad: errors of single records by their row, 0..n-1; such a record's bytes must not be used.
    last: whether nothing comes after this block.
    long: of the one record that is longer than a block, where in the file its payload starts and ends: it is not here.
    lost: why nothing from `end` on can be read; None when the shard continues or is at its end.
    """

    block: Block
    offset: int
    record: int
    bounds: NDArray[np.int64]
    last: bool = False
    bad: dict[int, ShardError | RecordError] = field(default_factory=dict)
    lost: ShardError | None = None
    long: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """starts, stops: int64 (n,) where each payload starts and ends in the block."""
        self.starts = self.bounds[:-1] + _HEADER
        self.stops = self.bounds[1:] - _FOOTER

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def end(self) -> int:
        """Byte of the file at which the next record starts."""
        return self.offset + int(self.bounds[-1])

    def payload(self, row: int) -> bytes:
        return bytes(self.block.view[self.starts[row] : self.stops[row]])

    def location(self, row: int) -> tuple[int, int]:
        """Index in the shard and first byte in the file of the record of row `row`, which may be n."""
        return self.record + row, self.offset + int(self.bounds[row])


class Shard:
    """One open TFRecord file; a context manager.

    block: where to read to, shared by shards that are read one after the other. reader: the source's, where it is open.

    Raises InputError when the source cannot be opened, here, and when it cannot be read or has changed, everywhere.
    """

    def __init__(self, source: Source, block: Block | None = None, reader: Reader | None = None) -> None:
        self.address = source.address
        self.block = block or Block()
        self._reader = reader or source.open()
        self._whole = Window(self._reader.descriptor, 0, self.size) if self._reader.descriptor is not None else None

    @property
    def size(self) -> int:
        """As scorer.inputs.source.Reader has it."""
        return self._reader.size

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._reader.close()

    @property
    def finder(self) -> Callable[[int, int], int | None] | None:
        """`find_record`, where there are compiled loops for it and any byte of the source is read as fast."""
        return self.find_record if self._whole and loops.active.find_header else None

    def window(self, offset: int) -> Window:
        """A file with the bytes from `offset` on, all that there are or some MB of them. Raises InputError."""
        return self._whole or self.block.stage.window(self._reader, offset, self.size)

    def check_unchanged(self) -> None:
        """Raise InputError when the source is no longer what it was when it was found."""
        self._reader.check_unchanged()

    def blocks(self, offset: int = 0, record: int = 0) -> Iterator[FramedBlock]:
        """The records from byte `offset` on, block by block; `record` is the index of the one at `offset`.

        Only the last block has `last`, and perhaps `lost`, set. Raises InputError as `frames`.
        """
        frames = self.frames(offset, record)
        yield frames
        while not frames.last:
            frames = self.frames(frames.end, frames.record + len(frames))
            yield frames

    def frames(self, offset: int, record: int) -> FramedBlock:
        """One block: at least one record, unless `offset` is the end or the rest is lost.

        Raises InputError when the source cannot be read, shrank, or has no byte `offset`.
        """
        if self.size == offset == 0:
            frames = self._rest_is_lost(offset, record, "the file is empty")
            assert frames.lost
            frames.lost.hints = (Hint.ALLOW_EMPTY, Hint.SKIP)
            return frames
        size = self._read(offset, self.block.capacity)
        frames = self._scan(size, offset, record)
        return frames if len(frames) or frames.last else self._first(size, offset, record)

    def find_record(self, offset: int, stop: int) -> int | None:
        """Where the first record from byte `offset` on and before `stop` starts, by all appearances; None where none
        seems to, and where it is more than a block away. Only with compiled loops.

        One in 2^32 places looks like a record's start and is none, and a record may hold others: whoever reads up to
        there will see. Raises InputError.
        """
        assert loops.active.find_header
        stop = min(stop, offset + self.block.capacity)
        while offset < min(stop, self.size - _HEADER):
            size = self._read(offset, min(stop + _HEADER - 1, self.size, offset + _SEARCHED) - offset)
            found = loops.active.find_header(self.block.view[:size])
            if found >= 0:
                return offset + found
            offset += size - _HEADER + 1
        return None

    def _scan(self, size: int, offset: int, record: int) -> FramedBlock:
        """The whole records at the start of the block's `size` bytes, payload CRCs checked."""
        bounds, bad = _records(self.block, size)
        frames = FramedBlock(self.block, offset, record, bounds, last=offset + int(bounds[-1]) == self.size)
        for row in bad:
            frames.bad[row] = self._payload_error(*frames.location(row))
        return frames

    def _first(self, size: int, offset: int, record: int) -> FramedBlock:
        """What to make of a block, of which `size` bytes were read, that does not hold its first record whole."""
        if self._reader.damage and size < self.block.capacity:
            return self._rest_is_lost(offset, record, self._reader.damage)
        left = self.size - offset
        if left < _HEADER:
            return self._rest_is_lost(offset, record, f"truncated: {left} of a header's {_HEADER} bytes")
        length = _SIZES[bytes(self.block.view[:_HEADER])] - _HEADER - _FOOTER
        if length >= 1 << 64:
            return self._bad_length(bytes(self.block.view[: min(size, KIND_BYTES)]), offset, record)
        if length > left - _HEADER - _FOOTER:
            return self._truncated(offset, record, length)
        return self._long(offset, record, length)

    def _truncated(self, offset: int, record: int, length: int) -> FramedBlock:
        held = self.size - offset - _HEADER
        reason = f"truncated: a record of {length} bytes, of which the file holds {held}"
        return self._rest_is_lost(offset, record, self._reader.damage or reason)

    def _bad_length(self, head: bytes, offset: int, record: int) -> FramedBlock:
        if offset:
            return self._rest_is_lost(
                offset, record, "the length fails its CRC32C, and with it all that follows is lost"
            )
        if kind := kind_of(head):
            return self._rest_is_lost(offset, record, f"not a TFRecord file but {kind[0]}", kind[1])
        return self._rest_is_lost(offset, record, "not a TFRecord file, or its first length is damaged (CRC32C)")

    def _rest_is_lost(self, offset: int, record: int, reason: str, remedy: str = _DOWNLOAD) -> FramedBlock:
        end = offset
        while self.size == UNKNOWN_SIZE:
            end += self._read(end, self.block.capacity)
        lost = ShardError(self.address, reason, record=record, offset=offset, remedy=remedy, hints=(Hint.SKIP,))
        return FramedBlock(self.block, offset, record, np.zeros(1, np.int64), last=True, lost=lost)

    def _long(self, offset: int, record: int, length: int) -> FramedBlock:
        """A record longer than a block: checked piecewise, and left where it is."""
        at, stop, check = offset + _HEADER, offset + _HEADER + length, 0
        while at < stop:
            size = self._read(at, min(stop - at, self.block.capacity))
            if not size:
                return self._truncated(offset, record, length)
            check = loops.active.crc32c(self.block.view[:size], check)
            at += size
        if self._read(stop, _FOOTER) < _FOOTER:
            return self._truncated(offset, record, length)
        (stored,) = struct.unpack_from("<I", self.block.bytes)
        found = FramedBlock(self.block, offset, record, np.array([0, stop + _FOOTER - offset]))
        found.last = found.end == self.size
        if stored == _mask(check):
            found.long = offset + _HEADER, stop
        else:
            found.bad[0] = self._payload_error(record, offset)
        return found

    def read(self, offset: int, count: int) -> bytes:
        """The `count` bytes from `offset` on, fewer at the end of the source."""
        content = bytearray(count)
        return bytes(memoryview(content)[: self._reader.read_into(offset, memoryview(content))])

    def payload(self, start: int, size: int, record: int, offset: int) -> bytes | ShardError:
        """That of the record of `size` bytes, header and all, from byte `start` of the block on; or its CRC's error."""
        stop = start + size
        payload = bytes(self.block.view[start + _HEADER : stop - _FOOTER])
        (stored,) = struct.unpack_from("<I", self.block.bytes, stop - _FOOTER)
        return payload if stored == _mask(loops.active.crc32c(payload)) else self._payload_error(record, offset)

    def _payload_error(self, record: int, offset: int) -> ShardError:
        reason = "the payload fails its CRC32C"
        return ShardError(self.address, reason, record=record, offset=offset, remedy=_DOWNLOAD, hints=(Hint.SKIP,))

    def _read(self, offset: int, count: int) -> int:
        """Read `count` bytes from `offset` into the block, fewer only at the end of the source."""
        return self._reader.read_into(offset, self.block.view[:count])


class _Sizes(dict[bytes, int]):
    """How many bytes a record with this 12-byte header has in all; more than any when the length fails its CRC.

    Shards have few different lengths, so that a header seen before needs no second CRC.
    """

    def __missing__(self, header: bytes) -> int:
        length, stored = struct.unpack("<QI", header)
        if stored != _mask(loops.active.crc32c(header[:8])):
            return 1 << 65
        if len(self) >= 1 << 16:
            self.clear()
        self[header] = _HEADER + int(length) + _FOOTER
        return self[header]


_SIZES = _Sizes()
_UNPACK_HEADER = struct.Struct(f"{_HEADER}s").unpack_from


def starts_with_record(head: bytes) -> bool:
    """Whether these are the first bytes of a TFRecord file, as far as the length of its first record tells."""
    return len(head) >= _HEADER and _SIZES[head[:_HEADER]] < 1 << 65


def _mask(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _records(block: Block, size: int) -> tuple[NDArray[np.int64], list[int]]:
    """Of whole records at the start of `size` bytes: FramedBlock.bounds, and the rows whose payload fails its CRC."""
    found = [0]
    at, limit = 0, size - _HEADER - _FOOTER
    if at <= limit:
        sizes, unpack, data, append = _SIZES, _UNPACK_HEADER, block.bytes, found.append
        for _ in repeat(None, MAX_BLOCK_RECORDS):
            at += sizes[unpack(data, at)[0]]
            append(at)
            if at > limit:
                break
        if at > size:
            found.pop()
    bounds = np.array(found, np.int64)
    stops = bounds[1:] - _FOOTER
    payloads = zip((bounds[:-1] + _HEADER).tolist(), stops.tolist(), strict=True)
    crc32c = loops.active.crc32c
    sums = np.array([crc32c(block.view[start:stop]) for start, stop in payloads], np.uint32)
    masked = (sums >> 15 | sums << 17) + np.uint32(0xA282EAD8)
    return bounds, np.flatnonzero(masked != block.halves[stops]).tolist()
