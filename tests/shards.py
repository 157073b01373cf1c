"""Writes TFRecord shards of tf.Examples for tests, and damages them: framing and wire format by hand, no protobuf.

A record is `uint64 length | uint32 masked CRC32C of the length | payload | uint32 masked CRC32C of the payload`,
all little-endian (tensorflow/core/lib/io/record_writer.h). `field` builds any protobuf wire layout, so that tests can
also write what no protobuf library would.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import crc32c
import numpy as np
from numpy.typing import NDArray

from scorer.inputs.source import LocalFile, Source

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
HEADER_BYTES, FOOTER_BYTES = 12, 4


def masked_crc(data: bytes) -> int:
    """TFRecord's masked CRC32C of `data`."""
    crc = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def frame(payload: bytes) -> bytes:
    """One TFRecord record around `payload`."""
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", masked_crc(length)) + payload + struct.pack("<I", masked_crc(payload))


def write_shard(path: str | Path, records: Iterable[bytes]) -> str:
    """Write the payloads `records` as a TFRecord file; returns its path."""
    with open(path, "wb") as file:
        file.writelines(frame(payload) for payload in records)
    return os.fspath(path)


def sources(paths: Iterable[str]) -> list[Source]:
    """The files at `paths` as they are now, as a command would find them."""
    return [LocalFile.at(path) for path in paths]


def varint(value: int) -> bytes:
    """Base-128 varint; negative values as 64-bit two's complement, as protobuf writes int64."""
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def field(number: int, content: bytes, kind: int = BYTES) -> bytes:
    """One protobuf field: its tag, the length when `kind` is BYTES, and `content` as it is."""
    head = varint(number << 3 | kind)
    return head + varint(len(content)) + content if kind == BYTES else head + content


def float_feature(values: NDArray[np.float32] | Sequence[float]) -> bytes:
    """A Feature holding a packed FloatList."""
    return field(2, field(1, np.asarray(values, "<f4").tobytes()))


def int64_feature(values: Iterable[int]) -> bytes:
    """A Feature holding a packed Int64List."""
    return field(3, field(1, b"".join(map(varint, values))))


def bytes_feature(*values: bytes) -> bytes:
    """A Feature holding a BytesList."""
    return field(1, b"".join(field(1, value) for value in values))


def entry(key: str | bytes, feature: bytes) -> bytes:
    """One entry of the map Features.feature, as a field of Features."""
    name = key.encode() if isinstance(key, str) else key
    return field(1, field(1, name) + field(2, feature))


def example_of(entries: Iterable[bytes]) -> bytes:
    """A tf.Example made of map entries, in the order given."""
    return field(1, b"".join(entries))


def example(
    id: str | bytes | None,
    labels: Iterable[int] | None,
    features: Mapping[str, NDArray[np.float32] | Sequence[float]],
    *,
    id_key: str = "id",
) -> bytes:
    """A serialised tf.Example; an `id` or `labels` of None leaves that feature out."""
    entries = [entry(name, float_feature(values)) for name, values in features.items()]
    if labels is not None:
        entries.append(entry("labels", int64_feature(labels)))
    if id is not None:
        entries.append(entry(id_key, bytes_feature(id.encode() if isinstance(id, str) else id)))
    return example_of(entries)


def frame_list(name: str, frames: Iterable[bytes]) -> bytes:
    """One list of frames of a SequenceExample, each frame a Feature, as a field of FeatureLists."""
    return field(1, field(1, name.encode()) + field(2, b"".join(field(1, frame) for frame in frames)))


def sequence_example(
    id: str | bytes | None,
    labels: Iterable[int] | None,
    frames: Mapping[str, NDArray[np.uint8] | NDArray[np.float32]],
    context: Iterable[bytes] = (),
) -> bytes:
    """A SequenceExample with lists of frames (n, width), quantised or floats, and these entries too in its context."""
    lists = [
        frame_list(
            name, (bytes_feature(row.tobytes()) if values.dtype == np.uint8 else float_feature(row) for row in values)
        )
        for name, values in frames.items()
    ]
    entries = [] if labels is None else [entry("labels", int64_feature(labels))]
    if id is not None:
        entries.append(entry("id", bytes_feature(id.encode() if isinstance(id, str) else id)))
    return example_of([*entries, *context]) + field(2, b"".join(lists))


def starts(path: str | Path) -> list[int]:
    """Byte offsets at which the records of an undamaged shard start, and the file's size as the last item."""
    data = Path(path).read_bytes()
    offsets = [0]
    while offsets[-1] < len(data):
        (length,) = struct.unpack_from("<Q", data, offsets[-1])
        offsets.append(offsets[-1] + HEADER_BYTES + length + FOOTER_BYTES)
    return offsets


def flip_bit(path: str | Path, byte: int, bit: int = 0) -> None:
    """Flip one bit of the file in place."""
    with open(path, "r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ 1 << bit]))


def damage_payload(path: str | Path, record: int) -> None:
    """Make record `record`'s payload fail its CRC; its neighbours stay whole."""
    flip_bit(path, starts(path)[record] + HEADER_BYTES)


def damage_length(path: str | Path, record: int) -> None:
    """Make record `record`'s length fail its CRC: nothing after it can be found."""
    flip_bit(path, starts(path)[record])


def truncate(path: str | Path, size: int) -> None:
    """Cut the file to `size` bytes."""
    os.truncate(path, size)


def write_damaged(
    folder: Path,
    kinds: Sequence[Sequence[str]],
    made: Callable[[int, str], bytes],
    damage: Iterable[tuple[int, str, int]],
) -> list[str]:
    """Shards of records made from their number and kind, and their damages: index of the shard, "flip" or "cut", and a
    byte, modulo the shard's size.
    """
    numbers = [*accumulate(map(len, kinds), initial=0)]
    paths = [
        write_shard(folder / f"{index}", [made(first + row, kind) for row, kind in enumerate(shard)])
        for index, (first, shard) in enumerate(zip(numbers, kinds, strict=False))
    ]
    for index, how, byte in damage:
        if index < len(paths) and (size := os.path.getsize(paths[index])):
            (flip_bit if how == "flip" else truncate)(paths[index], byte % size)
    return paths
