"""Which reader reads a shard: the one of the format that recognises its first bytes.

Built-in formats stand in `_formats`, others call `register_format`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from itertools import chain, pairwise

from scorer.inputs.bare import BARE
from scorer.inputs.columns import ARROW, PARQUET
from scorer.inputs.compressed import DecompressingReader, is_compressed
from scorer.inputs.empty import EmptyReader, EmptyShard
from scorer.inputs.example_reader import EXAMPLES, EXAMPLES_BESIDE_FRAMES
from scorer.inputs.frame_reader import FRAMES
from scorer.inputs.plain_files import PlainFiles, plain_files
from scorer.inputs.position import Position
from scorer.inputs.records import (
    HEAD_BYTES,
    DecodedBlock,
    DecodedRun,
    Level,
    Opener,
    RecordFormat,
    RecordReader,
    Schema,
    Target,
)
from scorer.inputs.source import Opening, Reader, Source, opens_ahead
from scorer.inputs.tfrecord import starts_with_record

_registered: list[RecordFormat] = []


def register_format(new: RecordFormat) -> None:
    """Have shards that `new` recognises read by it. It is asked of every shard: none is decoded with others then."""
    _registered.append(new)


def _formats(level: Level) -> list[RecordFormat]:
    """The formats in the order in which they are asked. The last one takes what no other knows, and says what it is."""
    if level == "segment":
        from scorer.inputs.segments import SEGMENTS  # seldom needed

        return [*_registered, SEGMENTS]
    built_in: dict[Level, list[RecordFormat]] = {
        "auto": [PARQUET, ARROW, BARE, FRAMES, EXAMPLES_BESIDE_FRAMES, EXAMPLES],
        "video": [PARQUET, ARROW, EXAMPLES],
        "frame": [BARE, FRAMES],
    }
    return [*_registered, *built_in[level]]


class RecordReaders:
    """Opens shards of any known format for one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._formats = _formats(schema.level)
        self._openers: dict[int, Opener] = {}

    @cached_property
    def plain_files(self) -> PlainFiles | None:
        """What decodes local shards that EXAMPLES would read, several at a time; None where there is no such way."""
        asked = bool(_registered) or self._formats[-1] is not EXAMPLES
        return None if asked else plain_files(self._schema)

    def open(self, source: Source) -> RecordReader:
        """Raises InputError where the source cannot be opened or read."""
        return self._recognised(source, source.open())

    def opened(self, shards: Iterable[tuple[int, Source]]) -> Generator[tuple[int, RecordReader]]:
        """Each of `shards`, pairs of index and source, open until the next one is asked for. Raises InputError.

        The first bytes of a remote one are on their way while the shard before it is read.
        """
        with closing(in_turn(shards)) as readers:
            for index, source, reader in readers:
                with closing(self._recognised(source, reader)) as opened:
                    yield index, opened

    def _recognised(self, source: Source, reader: Reader) -> RecordReader:
        if isinstance(source, EmptyShard):
            return EmptyReader(reader)
        try:
            head = _head(reader)
            if not starts_with_record(head) and is_compressed(head):
                reader = DecompressingReader(source, reader)
                head = _head(reader)
            number = self._number(head)
            if number not in self._openers:
                self._openers[number] = self._formats[number].opener(self._schema)
            opened = self._openers[number](source, reader)
            return _CompressedReader(opened, reader) if isinstance(reader, DecompressingReader) else opened
        except BaseException:
            reader.close()
            raise

    def _number(self, head: bytes) -> int:
        """Of the format that recognises these first bytes; the last one takes all others."""
        last = len(self._formats) - 1
        return next((number for number in range(last) if self._formats[number].recognises(head)), last)


class _CompressedReader:
    """The record reader of a compressed shard: `reader`, with how far it is in `stream`."""

    find_record = None

    def __init__(self, reader: RecordReader, stream: DecompressingReader) -> None:
        self._reader, self._stream = reader, stream
        self.check_unchanged, self.close = reader.check_unchanged, reader.close

    @property
    def size(self) -> int:
        return self._reader.size

    def decode_into(self, position: Position, target: Target) -> DecodedRun:
        run = self._reader.decode_into(position, target)
        return replace(run, consumed=self._stream.consumed) if run.records else run

    def block(self, position: Position) -> DecodedBlock:
        return replace(self._reader.block(position), consumed=self._stream.consumed)


def in_turn(shards: Iterable[tuple[int, Source]]) -> Generator[tuple[int, Source, Reader]]:
    """Each of `shards` with a reader, which the caller closes; remote ones are opened ahead. Raises InputError."""
    opening: Opening | None = None
    try:
        for (index, source), following in pairwise(chain(shards, [(0, None)])):
            assert source
            reader = opening.reader() if opening else source.open()
            opening = following[1].begin() if opens_ahead(following[1]) else None
            yield index, source, reader
    finally:
        if opening:
            opening.close()


def _head(reader: Reader) -> bytes:
    buffer = memoryview(bytearray(HEAD_BYTES))
    return bytes(buffer[: reader.read_into(0, buffer)])


def decoded_blocks(shards: Iterable[tuple[int, Source]], schema: Schema, start: Position) -> Generator[DecodedBlock]:
    """The blocks of `shards`, pairs of index and source, in order; each is valid until the next one is asked for.

    A shard of the index of `start` is read from there on. Raises InputError.
    """
    with closing(RecordReaders(schema).opened(shards)) as opened:
        for index, reader in opened:
            position = start if index == start.shard else Position(index, 0, 0)
            while position.shard == index:
                yield (block := reader.block(position))
                position = block.end
