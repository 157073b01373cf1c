"""Where the features of many records lie, found by comparing a few words of each with headers seen before.

A tf.Example as every common writer makes it is

    0A len { 0A len { 0A len key  12 len { kind len { tag len data } } } ... }

with one entry of the map per feature, where kind is 0A bytes_list, 12 float_list or 1A int64_list and tag is 0A. All
of an entry except its data is its header. Equal headers mean equal structure, so a header is taken apart once
(`Layouts._header`) and afterwards recognised by its bytes, for all records of a block at once. The order of entries is
free. A feature that nobody asks for may be of any form: what is valid in it only its own bytes can tell, so these are
looked at record by record (`_is_valid`). A record with anything else in it is left to protobuf.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorer.inputs.tfrecord import Block
from scorer.kernels.limits import MAX_ID_BYTES, MAX_LABEL_BYTES

Ints = NDArray[np.int64]

ID_KEYS = ("id", "video_id")
LABELS_KEY = "labels"
MAX_HEADER_BYTES = 256

_MAX_ENTRIES = 32
_MAX_HEADERS = 1024
_MAX_CHAIN = 32
_MAX_LEARNT = 64  # headers at a time
_MAX_ROUNDS = 8  # times in a block, so that a shard made to be learnt from costs no more than to parse it
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 0x0A, 0x12, 0x1A
_PACKED_VARINTS = re.compile(rb"(?:[\x80-\xff]{0,9}[\x00-\x7f])*+")
_NOT_PACKED = {
    _INT64_LIST: re.compile(rb"(?:\x08[\x80-\xff]{0,9}[\x00-\x7f])++"),
    _FLOAT_LIST: re.compile(rb"(?:\x0d.{4})++", re.DOTALL),
}
_VARINT_BYTES = 10  # at most
_WORD = 8
_HASH, _HASH_SHIFT = np.int64(-7046029254386353131), 50  # 2**64 / golden ratio; 14 bits stay
_TAIL = 0x0012  # the bytes 12 00: an empty field 2
_UNKNOWN, _NOTHING = 0, 1  # kinds that are no header: one never seen, and none because the record has ended


@dataclass
class FieldOffsets:
    """Where the data of n records lies in their block. Columns: each feature of the schema, then the id, then labels.

    known: bool (n,) whether the record consists of known entries only; the rest holds for such records alone.
    at: int64 (columns, n) byte in the block at which the data starts.
    lengths: int64 (columns, n) bytes of data.
    labelled: bool (n,) whether there is a `labels` entry; without one its length is 0.
    """

    known: NDArray[np.bool_]
    at: Ints
    lengths: Ints
    labelled: NDArray[np.bool_]


@dataclass(frozen=True)
class _Header:
    """One entry up to its data, which has `length` bytes.

    column: the data's column in FieldOffsets, or -1 when nobody asks for it.
    feature: 0, or at which byte of the entry a Feature starts that is valid or not by what is in it.
    varints: whether the data are so few varints that they are valid if their last byte ends one.
    """

    content: bytes
    length: int
    column: int
    feature: int = 0
    varints: bool = False

    def offsets(self, count: int) -> list[int]:
        """Where to look for `count` words of 8 bytes that together cover the header."""
        return [min(_WORD * i, len(self.content) - _WORD) for i in range(count)]


class Layouts:
    """Takes records apart. It keeps the entry headers that it has seen and that fit one schema.

    inputs: float features asked for and their widths.
    """

    def __init__(self, inputs: Mapping[str, int]) -> None:
        self._widths = dict(inputs)
        self._columns = {name: column for column, name in enumerate(inputs)}
        self._id, self._labels = len(inputs), len(inputs) + 1
        self._headers: dict[bytes, _Header] = {}
        self._sure = 0  # how many entries every record had so far: no need to look for an end before them
        self._index()

    def find(self, block: Block, starts: Ints, stops: Ints) -> FieldOffsets:
        """Take apart n >= 1 records: int64 (n,) where each payload starts and ends in `block`."""
        begins, stops, framed = _spans(block.words, starts, stops)
        rounds = 0
        while True:
            kinds, positions, ends, full = self._walk(block.words, begins, stops)
            known = framed & (ends == stops)
            equal = self._equal(block.words, positions, kinds)
            if not equal.all():
                same = equal.all(axis=2) | (kinds == _NOTHING)
                known &= same.all(axis=0)
            if known.all():
                self._sure = full
                break
            if self._sure:
                self._sure = 0  # perhaps some records have fewer entries than all had until now
            elif rounds == _MAX_ROUNDS or equal.all() or not self._learn(block, positions, stops, framed, same):
                break
            else:
                rounds += 1
        if self._varints.any():
            last = block.octets.take(positions + self._sizes[kinds] - 1, mode="clip")
            known &= ~(self._varints[kinds] & (last >= 0x80)).any(axis=0)
        if self._feature.any():
            self._check_features(block, known, kinds, positions)
        return self._collect(known, kinds, positions)

    def _check_features(self, block: Block, known: NDArray[np.bool_], kinds: Ints, positions: Ints) -> None:
        """No longer `known` is a record with a feature that nobody asks for and that is not valid."""
        steps, rows = np.nonzero((self._feature[kinds] > 0) & known)
        at, kind = positions[steps, rows], kinds[steps, rows]
        starts, stops = (at + self._feature[kind]).tolist(), (at + self._sizes[kind]).tolist()
        for row, start, stop in zip(rows.tolist(), starts, stops, strict=True):
            if not _is_valid(block, start, stop):
                known[row] = False

    def _learn(
        self, block: Block, positions: Ints, stops: Ints, framed: NDArray[np.bool_], same: NDArray[np.bool_]
    ) -> bool:
        """Remember the headers that the walk did not know, one of each first word; whether any was new."""
        rows = np.flatnonzero(framed & ~same.all(axis=0))
        at = positions[same[:, rows].argmin(axis=0), rows]
        _, some = np.unique(block.words[at], return_index=True)
        found = [self._header(block, int(at[i]), int(stops[rows[i]])) for i in some[:_MAX_LEARNT].tolist()]
        new = {header.content: header for header in found if header and header.content not in self._headers}
        if len(new) + len(self._headers) > _MAX_HEADERS:
            self._headers.clear()
        self._headers |= new
        if new:
            self._index()
        return bool(new)

    def _header(self, block: Block, first: int, stop: int) -> _Header | None:
        """The header at byte `first`; None when it is protobuf's."""
        try:
            header = self._take_apart(block.view, first, stop)
        except ValueError:
            return None
        return header if header and _WORD <= len(header.content) <= MAX_HEADER_BYTES else None

    def _take_apart(self, data: memoryview, first: int, stop: int) -> _Header | None:
        """As `_header`. Raises ValueError when the entry is of another form, or continues after `stop`."""
        key, start, end = _entry(data, first, stop)
        if key not in self._columns and key not in ID_KEYS and key != LABELS_KEY:
            return _unasked(data, first, start, end)
        kind, at = _list(data, start, end)
        column, length = self._columns.get(key, -1), end - at
        if column >= 0:
            fits = kind == _FLOAT_LIST and length == 4 * self._widths[key]
        elif key in ID_KEYS:
            column, fits = self._id, kind == _BYTES_LIST and 0 < length <= MAX_ID_BYTES
        else:
            column, fits = self._labels, kind == _INT64_LIST and length <= MAX_LABEL_BYTES
        return _Header(bytes(data[first:at]), length, column) if fits else None

    def _index(self) -> None:
        """Tables by kind: a header's number, from 2 on. No words match _UNKNOWN: they differ, at one position."""
        headers = list(self._headers.values())
        sink = len(self._columns) + 2
        count = max((-(-len(header.content) // _WORD) for header in headers), default=2)
        offsets = [header.offsets(count) for header in headers]
        words = [[_word(header.content, at) for at in row] for header, row in zip(headers, offsets, strict=True)]
        self._offsets = np.array([[0] * count] * 2 + offsets, np.int64)
        self._words = np.array([range(count)] * 2 + words, np.int64)
        self._sizes = np.array([0, 0, *(len(header.content) + header.length for header in headers)], np.int64)
        self._data = np.array([0, 0, *(len(h.content) | h.length << 32 for h in headers)], np.int64)
        self._column = np.array([sink, sink, *(h.column if h.column >= 0 else sink for h in headers)], np.int64)
        self._feature = np.array([0, 0, *(header.feature for header in headers)], np.int64)
        self._varints = np.array([False, False, *(header.varints for header in headers)])
        self._chain()

    def _chain(self) -> None:
        """The hash table from the first word of a header to its kind; kinds of one hash are chained by `_next`.

        Hashes are signed: the table's upper half is for negative ones, as indices from its end.
        """
        self._first = np.zeros(1 << 64 - _HASH_SHIFT, np.int64)
        self._next = np.zeros(len(self._words), np.int64)
        hashes = (self._words[:, 0] * _HASH >> _HASH_SHIFT).tolist()
        chained = Counter[int]()
        for kind, number in list(enumerate(hashes))[2:]:
            chained[number] += 1
            if chained[number] <= _MAX_CHAIN:  # more can only be meant to cost time
                self._next[kind] = self._first[number]
                self._first[number] = kind
        self._chained = bool(self._next.any())

    def _walk(self, words: Ints, position: Ints, stops: Ints) -> tuple[Ints, Ints, Ints, int]:
        """Follow the entries from `position` on.

        Returns int64 (steps, n) kinds and positions of entries, (n,) where the last ends, and the steps before one did.
        """
        kinds, positions, full = [], [], 0
        limit = len(words) - MAX_HEADER_BYTES  # what is read there instead of further on is no part of a record
        for step in range(_MAX_ENTRIES):
            left = len(position)
            if step >= self._sure:
                active = position < stops
                left = int(np.count_nonzero(active))
                if not left:
                    break
            at = np.minimum(position, limit)
            kind = self._first[words[at] * _HASH >> _HASH_SHIFT]
            if self._chained:
                self._resolve(words, at, kind)
            if left < len(position):
                kind[~active] = _NOTHING
            else:
                full = step + 1
            kinds.append(kind)
            positions.append(at)
            position = position + self._sizes[kind]
        shape = len(kinds), len(position)
        return np.array(kinds, np.int64).reshape(shape), np.array(positions, np.int64).reshape(shape), position, full

    def _resolve(self, words: Ints, position: Ints, kind: Ints) -> None:
        """Follow the chain, in `kind` itself, where another header has the same hash."""
        rows = np.flatnonzero(self._next[kind])
        while len(rows):
            rows = rows[~self._equal(words, position[rows], kind[rows]).all(axis=1)]
            kind[rows] = self._next[kind[rows]]
            rows = rows[self._next[kind[rows]] != 0]

    def _equal(self, words: Ints, positions: Ints, kinds: Ints) -> NDArray[np.bool_]:
        """Shape of `kinds` and one axis more: whether each word at `positions` is the one that the header has there."""
        at = positions[..., None] + self._offsets.take(kinds, axis=0)
        equal: NDArray[np.bool_] = words[at] == self._words.take(kinds, axis=0)
        return equal

    def _collect(self, known: NDArray[np.bool_], kinds: Ints, positions: Ints) -> FieldOffsets:
        columns, count = len(self._columns) + 2, len(known)
        column = self._column[kinds]
        found = np.full((columns + 1, count), -1)  # the last is for what nobody asks for
        found[column, np.arange(count)] = positions + self._data[kinds]  # byte, and above bit 32 the length
        found = found[:columns]
        filled = found >= 0
        if not filled.all():
            known &= filled[: self._labels].all(axis=0)
            found[~filled] = 0
        if len(kinds) > columns or not filled.all():
            known &= filled.sum(axis=0) == (column < columns).sum(axis=0)  # else two entries are of one column
        return FieldOffsets(known, found & 0xFFFFFFFF, found >> 32, filled[self._labels])


def _word(content: bytes, at: int) -> int:
    return int.from_bytes(content[at : at + _WORD], "little", signed=True)


def _heads(lengths: Ints) -> Ints:
    """(3, n): size of the header of an Example of so many bytes, a mask of that size, the header as a word.

    The length in it is a base-128 varint: 7 bits a byte, the lowest first, bit 7 set in all bytes but the last.
    """
    sizes = 2 + np.searchsorted([129, 16386, 2097155], lengths)  # the longest with a varint of 1, 2 and 3 bytes
    rest = lengths - sizes
    masks = np.array([0, 0, 0xFFFF, 0xFFFFFF, 0xFFFFFFFF, 0xFFFFFFFFFF])[sizes]
    more = np.array([0, 0, 0, 0x80, 0x8080, 0x808080])[sizes]
    varint = sum((rest >> 7 * i & 0x7F) << 8 * i for i in range(4)) | more
    heads = np.array([sizes, masks, varint << 8 | 0x0A])
    heads[:, rest < 0] = [[2], [0], [1]]  # matches nothing
    return heads


_HEADS = _heads(np.arange(1 << 14))


def _spans(words: Ints, starts: Ints, stops: Ints) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Where the Features of each Example start and end, and whether there is nothing else except perhaps _TAIL.

    The shards of YouTube-8M were written as SequenceExamples without feature lists: to an Example, an unknown field.
    """
    tailed = words[stops - 2] & 0xFFFF == _TAIL
    begins, framed = _begins(words, starts, stops - 2 * tailed)
    if (wrong := tailed & ~framed).any():  # perhaps the tail is that of the last feature, which is empty
        begins[wrong], framed[wrong] = _begins(words, starts[wrong], stops[wrong])
        tailed = tailed & ~(wrong & framed)
    return begins, stops - 2 * tailed, framed


def _begins(words: Ints, starts: Ints, stops: Ints) -> tuple[Ints, NDArray[np.bool_]]:
    """Where the Features of each Example start, and whether they are all that is in it."""
    lengths = stops - starts
    heads = _HEADS.take(lengths, axis=1) if int(lengths.max()) < _HEADS.shape[1] else _heads(lengths)
    return starts + heads[0], words[starts] & heads[1] == heads[2]


def _entry(data: memoryview, first: int, stop: int) -> tuple[str, int, int]:
    """Key of the entry at byte `first`, and where its Feature starts and ends. Raises ValueError as `_take_apart`."""
    position, end = _open(data, first, stop, 0x0A)
    key_at, key_end = _open(data, position, end, 0x0A)
    return bytes(data[key_at:key_end]).decode(), _enter(data, key_end, end, 0x12), end


def _list(data: memoryview, start: int, end: int) -> tuple[int, int]:
    """The kind of the one list that a Feature holds, and where its data start. Raises ValueError for another form."""
    kind = data[start]
    if kind not in (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST):
        raise ValueError("not a list")
    at = _enter(data, start, end, kind)
    return kind, _enter(data, at, end, 0x0A) if at < end else at


def _unasked(data: memoryview, first: int, start: int, end: int) -> _Header:
    """The header of an entry that nobody asks for, whose Feature starts and ends there."""
    try:
        kind, at = _list(data, start, end)
    except ValueError:
        kind, at = 0, start
    if kind == _BYTES_LIST or (kind == _FLOAT_LIST and not (end - at) % 4):
        return _Header(bytes(data[first:at]), end - at, -1)  # valid whatever the data are
    if kind == _INT64_LIST and at < end <= at + _VARINT_BYTES:
        return _Header(bytes(data[first:at]), end - at, -1, varints=True)
    at = min(start + 1, end)
    return _Header(bytes(data[first:at]), end - at, -1, start - first)


def _is_valid(block: Block, start: int, stop: int) -> bool:
    """Whether these bytes of the block are a valid Feature of the lists that there are, packed or not."""
    try:
        while start < stop:
            kind = block.view[start]
            position, start = _open(block.view, start, stop, kind)
            if kind not in (_BYTES_LIST, _FLOAT_LIST, _INT64_LIST) or not _is_valid_list(block, position, start, kind):
                return False
    except ValueError:
        return False
    return True


def _is_valid_list(block: Block, position: int, stop: int, kind: int) -> bool:
    """As `_is_valid`, of the content of a list. Raises ValueError if it is cut."""
    while position < stop:
        if block.view[position] == 0x0A:
            start, position = _open(block.view, position, stop, 0x0A)
            if kind == _INT64_LIST and not _PACKED_VARINTS.fullmatch(block.bytes, start, position):
                return False
            if kind == _FLOAT_LIST and (position - start) % 4:
                return False
        else:
            found = kind in _NOT_PACKED and _NOT_PACKED[kind].match(block.bytes, position, stop)
            if not found:
                return False
            position = found.end()
    return True


def are_varints(data: memoryview) -> bool:
    """Whether packed varints are whole, and none too long."""
    return _PACKED_VARINTS.fullmatch(data) is not None


def _enter(data: memoryview, position: int, stop: int, tag: int) -> int:
    """Where the content of the field at `position` starts. Raises ValueError if it does not end at `stop`."""
    start, end = _open(data, position, stop, tag)
    if end != stop:
        raise ValueError("something follows the field")
    return start


def _open(data: memoryview, position: int, stop: int, tag: int) -> tuple[int, int]:
    """Where the content of the field at `position` starts and ends. Raises ValueError if that is after `stop`."""
    if data[position] != tag:
        raise ValueError("another field")
    length = 0
    for i in range(4):  # a base-128 varint below 2**28
        position += 1
        length |= (data[position] & 0x7F) << 7 * i
        if data[position] < 0x80:
            break
    else:
        raise ValueError("no length")
    if position + 1 + length > stop:
        raise ValueError("a length past the end")
    return position + 1, position + 1 + length
