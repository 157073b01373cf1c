"""Frame-level records, tf.SequenceExamples, taken apart: what lies where, and frames to the mean that a model reads.

    0A len { context: entries as in a tf.Example }  12 len { 0A len { 0A len name  12 len { 0A len frame, ... } } ... }

A frame is a Feature of one byte string, a byte a value (YouTube-8M), or of floats (MediaPipe). YouTube-8M's byte q
stands for q * 4 / 255 + 4 / 512 - 2, and its video-level features are the means of these over all frames: the bytes are
added up as integers, and converted once. Only the form that every common writer gives is known here; all else is
protobuf's.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.inputs.tfrecord import starts_with_record
from scorer.inputs.wire import field, varint
from scorer.kernels import loops
from scorer.kernels.limits import MOST_APART

Span: TypeAlias = memoryview
Floats: TypeAlias = NDArray[np.float32]

MEAN_PREFIX = "mean_"
_MEAN = MEAN_PREFIX.encode()
EVERY_FRAME = 1 << 62
_CONTEXT, _LISTS, _ENTRY, _KEY, _VALUE = 0x0A, 0x12, 0x0A, 0x0A, 0x12
_HEADER = 12  # bytes before a record
_BYTES_LIST, _FLOAT_LIST, _DATA = 0x0A, 0x12, 0x0A
_SCALE, _SHIFT = 4 / 255, 4 / 512 - 2


def list_names(name: str) -> tuple[str, ...]:
    """The lists of frames, YouTube-8M's and MediaPipe's, whose mean the feature `name` is."""
    if not name.startswith(MEAN_PREFIX):
        return ()
    short = name.removeprefix(MEAN_PREFIX)
    return short, f"{short.upper()}/feature/floats"


def dequantised(sums: NDArray[np.uint32], count: int) -> Floats:
    """The mean of `count` frames of bytes whose sums these are."""
    return (sums * (_SCALE / count) + _SHIFT).astype(np.float32)


@dataclass
class Parts:
    """A record's context, and its lists of frames, by name: each feature's content, and that of each list."""

    context: dict[bytes, Span]
    lists: dict[bytes, Span]

    def frames(self, name: str) -> Span | None:
        """Those whose mean the feature `name` is."""
        return next((self.lists[key] for each in list_names(name) if (key := each.encode()) in self.lists), None)


def take_apart(payload: Span) -> Parts | None:
    """None for what is not of the common form."""
    parts = Parts({}, {})
    try:
        for tag, content in _fields(payload):
            into = {_CONTEXT: parts.context, _LISTS: parts.lists}[tag]
            if into:
                return None  # a second part is merged with the first
            into.update(_entries(content))
    except (IndexError, KeyError, ValueError):
        return None
    return parts


def _entries(content: Span) -> Iterator[tuple[bytes, Span]]:
    """Name and content of each entry of a map. Raises ValueError, IndexError or KeyError for another form."""
    for tag, entry in _fields(content):
        key, *value = _fields(entry)
        if tag != _ENTRY or key[0] != _KEY or [tag for tag, _ in value] not in ([], [_VALUE]):
            raise ValueError("no entry")
        yield bytes(key[1]), value[0][1] if value else entry[:0]


def _fields(message: Span) -> Iterator[tuple[int, Span]]:
    """Tag and content of each field, all of which have a length. Raises ValueError or IndexError where one has none."""
    at, stop = 0, len(message)
    while at < stop:
        tag, start, end = field_at(message, at)
        if end > stop:
            raise ValueError("a field past the end")
        yield tag, message[start:end]
        at = end


def field_at(message: Span | bytes, at: int) -> tuple[int, int, int]:
    """The tag of the field at byte `at`, and where its content starts and ends. Raises ValueError or IndexError."""
    tag, length = message[at], 0
    if tag & 7 != 2 or tag >= 0x80:
        raise ValueError("a field without a length")
    for i in range(4):  # a base-128 varint below 2**28
        at += 1
        length |= (message[at] & 0x7F) << 7 * i
        if message[at] < 0x80:
            return tag, at + 1, at + 1 + length
    raise ValueError("no length")


def only_data(feature: Span, kind: int) -> Span | None:
    """What the one list of a feature, of `kind`, holds in one piece; None for another form."""
    try:
        ((tag, found),) = _fields(feature)
        if tag != kind:
            return None
        if not found:
            return found
        ((tag, data),) = _fields(found)
        return data if tag == _DATA else None
    except (IndexError, ValueError):
        return None


def mean_of_frames(frames: Span, to: Floats, first: int = 0, last: int = EVERY_FRAME) -> int:
    """Put the mean of the frames first..last-1, as far as there are some, into `to`, float32 (width,).

    Returns how many frames there are in all, -1 where they are not all of the common form and width or not finite.
    """
    width = len(to)
    sums = np.zeros(width, np.uint32)
    count = loops.active.sum_frames(frames, _header(_BYTES_LIST, width), first, last, sums)
    if count < 0:
        return _mean_of_floats(frames, to, first, last)
    if count > first:
        to[...] = dequantised(sums, min(last, count) - first)
    return count


def _mean_of_floats(frames: Span, to: Floats, first: int, last: int) -> int:
    header = _header(_FLOAT_LIST, 4 * len(to))
    stride = len(header) + 4 * len(to)
    if len(frames) % stride:
        return -1
    rows = np.frombuffer(frames, np.uint8).reshape(-1, stride)
    if (rows[:, : len(header)] != np.frombuffer(header, np.uint8)).any():
        return -1
    chosen = rows[first:last, len(header) :].view("<f4")
    if not np.isfinite(chosen).all():
        return -1
    if len(chosen):
        to[...] = chosen.sum(axis=0, dtype=np.float64) / len(chosen)
    return len(rows)


@cache
def _header(kind: int, size: int) -> bytes:
    """What stands before the `size` bytes of data of every frame."""
    head = b""
    for tag in (_DATA, kind, _ENTRY):
        head = bytes([tag]) + varint(len(head) + size) + head
    return head


def one_bytes_entry(name: str, value: bytes) -> bytes:
    """A record that has nothing but this feature in its context."""
    feature = field(1, field(1, value))  # a list of bytes, in a Feature
    return field(1, field(1, field(1, name.encode()) + field(2, feature)))  # in an entry of the context


def apart(counts: Mapping[str, int]) -> str:
    """What is wrong with the numbers of frames of a record's lists, by name; empty where nothing is."""
    for name, count in counts.items():
        if not count:
            return f"there are no frames in {name!r}"
    if counts and max(counts.values()) - min(counts.values()) > MOST_APART:
        return "the frames differ in number: " + ", ".join(f"{count} of {name!r}" for name, count in counts.items())
    return ""


def frames_in(head: bytes) -> tuple[bool, bool]:
    """Whether the first record of a TFRecord file that starts with `head` has frames, and means beside them."""
    if not starts_with_record(head):
        return False, False
    (length,) = struct.unpack_from("<Q", head)
    return _begins_with_frames(head[_HEADER : _HEADER + length], length)


def _begins_with_frames(payload_head: bytes, length: int) -> tuple[bool, bool]:
    """Whether a record of `length` bytes that begins so has lists of frames, and whether its context has means.

    A context that is longer than what is there counts as one with means.
    """
    head = memoryview(payload_head)
    try:
        tag, start, end = field_at(head, 0)
        if tag == _LISTS:
            return end > start, False
        has_frames = tag == _CONTEXT and length - end > 2  # two bytes are an empty field of lists
        if end > len(head):
            return has_frames, True
        return has_frames, any(key.startswith(_MEAN) for key, _ in _entries(head[start:end]))
    except (IndexError, KeyError, ValueError):
        return False, False
