"""The record reader of files that are one tf.SequenceExample and nothing else, as MediaPipe's extraction writes them.

Nothing in such a file says whether it is whole: there are no checksums. Its video is called as the file is, up to the
first dot, where the record has no id of its own.
"""

from __future__ import annotations

import os

import numpy as np

from scorer.errors import Hint, RecordError
from scorer.inputs.example import parse
from scorer.inputs.example_reader import OneRow
from scorer.inputs.frame_reader import MAX_RECORD_BYTES
from scorer.inputs.frames import field_at, one_bytes_entry
from scorer.inputs.position import Position
from scorer.inputs.protobuf import Row
from scorer.inputs.records import DecodedBlock, Opener, Schema, decode_nothing
from scorer.inputs.source import Reader, Source

_PIECE = 1 << 20
_CONTEXT, _ENTRY = 0x0A, 0x0A


class BareReader:
    """One open file: see scorer.inputs.records.RecordReader."""

    decode_into, find_record = staticmethod(decode_nothing), None

    def __init__(self, schema: Schema, source: Source, reader: Reader) -> None:
        self._schema, self._source, self._reader = schema, source, reader
        self.check_unchanged, self.close = reader.check_unchanged, reader.close

    @property
    def size(self) -> int:
        return self._reader.size

    def block(self, position: Position) -> DecodedBlock:
        """The one record, whatever is asked for: no other position is within the file."""
        row = self._row()
        self.check_unchanged()
        bounds = np.array([0, self._reader.size], np.int64)
        return DecodedBlock(position.shard, self._reader.size, 0, 0, bounds, True, None, row)

    def _row(self) -> OneRow:
        address, content = self._source.address, self._content()
        parsed: Row | RecordError
        if len(content) > MAX_RECORD_BYTES:
            reason = f"a frame-level record of more than {MAX_RECORD_BYTES:,} bytes"
            parsed = RecordError(address, reason, record=0, offset=0, hints=(Hint.SKIP,))
        else:
            name = os.path.basename(address).split(".")[0]
            named = one_bytes_entry("id", name.encode(errors="replace"))  # merged with what follows, which wins
            parsed = parse(address, named + content, self._schema, 0, 0)
        return OneRow(address, parsed, (0, 0))

    def _content(self) -> bytes:
        """All of the file, or a little more than is taken."""
        found, piece = bytearray(), memoryview(bytearray(_PIECE))
        while len(found) <= MAX_RECORD_BYTES:
            count = self._reader.read_into(len(found), piece)
            found += piece[:count]
            if count < _PIECE:
                break
        return bytes(found)


class _Bare:
    """The format of a SequenceExample without any framing."""

    def recognises(self, head: bytes) -> bool:
        """By its first entry, which no length of a TFRecord looks like."""
        try:
            context, start, _ = field_at(head, 0)
            entry, key_at, _ = field_at(head, start)
            key, first, last = field_at(head, key_at)
        except (IndexError, ValueError):
            return False
        return (context, entry, key) == (_CONTEXT, _ENTRY, _ENTRY) and last - first > 0 and head[first:last].isascii()

    def opener(self, schema: Schema) -> Opener:
        return lambda source, reader: BareReader(schema, source, reader)


BARE = _Bare()
