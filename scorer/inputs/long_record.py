"""A tf.Example longer than a block: what is asked for is taken out of it, and the rest is never held.

What makes records so long lies beside the features: pictures, sound, frames. It is stepped over without being looked
into, so that memory stays flat whatever a record holds.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeAlias

from scorer.inputs.protobuf import InvalidExample
from scorer.inputs.wire import field

Read: TypeAlias = Callable[[int, int], bytes]
"""(offset, count) -> so many bytes of the shard from `offset` on, fewer at its end."""

MAX_FIELDS = 100_000
"""A record longer than a block that has more of them is refused: each takes microseconds."""
_MAX_NAMES, _MAX_NAME_BYTES = 9, 1024
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WINDOW = 1 << 12


def shortened(read: Read, start: int, stop: int, names: Collection[bytes], most: int) -> bytes:
    """The Example from byte `start` to `stop` with the features `names` alone, and for messages some others' names.

    Raises InvalidExample where it is no Example, has more than MAX_FIELDS fields, or these features more than `most`
    bytes.
    """
    walk = _Walk(read, names, most)
    for number, first, last in walk.fields(start, stop):
        if number in (1, 2):  # features, and a SequenceExample's lists of frames
            for entry, begin, end in walk.fields(first, last):
                if entry == 1:
                    walk.entry(begin, end, in_features=number == 1)
    frames = b"".join(walk.frames)
    return field(1, b"".join([*walk.others, *walk.kept])) + (field(2, frames) if frames else b"")


class _Walk:
    """Goes through a record field by field.

    kept: the map entries asked for. others: those of other features, as far as messages name them, without content.
    frames: the same of lists of frames.
    """

    def __init__(self, read: Read, names: Collection[bytes], most: int) -> None:
        self.kept: list[bytes] = []
        self.others: list[bytes] = []
        self.frames: list[bytes] = []
        self._read, self._names, self._most = read, names, most
        self._count = self._kept_bytes = 0
        self._window, self._window_start = b"", 0

    def entry(self, start: int, stop: int, *, in_features: bool) -> None:
        """Keep the map entry from `start` to `stop`, or its name."""
        name = self._name(start, stop)
        if in_features and name in self._names:
            self._kept_bytes += stop - start
            if self._kept_bytes > self._most:
                raise InvalidExample(f"the features asked for have more than {self._most:,} bytes")
            self.kept.append(field(1, self._read(start, stop - start)))
            return
        named = self.others if in_features else self.frames
        if len(named) < _MAX_NAMES:
            named.append(field(1, field(1, name.decode(errors="replace").encode())))

    def fields(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Number, and where the content starts and ends, of each field with a length from `start` to `stop`."""
        at = start
        while at < stop:
            self._count += 1
            if self._count > MAX_FIELDS:
                raise InvalidExample(f"a record longer than a block with more than {MAX_FIELDS:,} fields")
            tag, at = self._varint(at, stop)
            end = self._end(tag & 7, at, stop)
            if tag & 7 == _BYTES:
                _, at = self._varint(at, stop)
                yield tag >> 3, at, end
            at = end

    def _end(self, kind: int, at: int, stop: int) -> int:
        """Where the field of this wire type ends, whose tag ends at `at`."""
        if kind == _VARINT:
            return self._varint(at, stop)[1]
        if kind == _BYTES:
            length, at = self._varint(at, stop)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise InvalidExample(f"not a tf.Example (wire type {kind})")
        if at + length > stop:
            raise InvalidExample("not a tf.Example (a field past its end)")
        return at + length

    def _name(self, start: int, stop: int) -> bytes:
        found = b""
        for number, first, last in self.fields(start, stop):
            if number == 1:
                found = self._read(first, min(last - first, _MAX_NAME_BYTES))
        return found

    def _varint(self, at: int, stop: int) -> tuple[int, int]:
        """The base-128 number at `at`, and where it ends."""
        value = 0
        for i in range(10):
            if at + i >= stop:
                break
            byte = self._byte(at + i)
            value |= (byte & 0x7F) << 7 * i
            if byte < 0x80:
                return value, at + i + 1
        raise InvalidExample("not a tf.Example (a number without an end)")

    def _byte(self, at: int) -> int:
        if not 0 <= at - self._window_start < len(self._window):
            self._window, self._window_start = self._read(at, _WINDOW), at
        return self._window[at - self._window_start]
