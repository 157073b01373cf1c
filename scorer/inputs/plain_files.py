"""Several local shards in one compiled call, as long as there is nothing but plain tf.Examples in them.

Python's lock is let go of once for many shards and not six times for each, so that threads seldom wait for it. What a
shard is decides its first record; what is not plain is left to the shard's own reader.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from scorer.inputs.position import Place, Position
from scorer.inputs.records import BLOCK_BYTES, Schema, Target
from scorer.inputs.source import LocalFile, Source
from scorer.kernels import loops
from scorer.kernels.limits import MAX_FILES, MAX_INPUTS
from scorer.kernels.loops import DecodeFiles, File, FindRecord

ROOM = 1 << 17
"""Bytes that are read at once; each thread has as many. A record that is longer is none for this loop."""

_FRAMING = 16  # bytes around each payload


@dataclass(frozen=True)
class PlainRun:
    """`records` records, one after the other, none of them bad, the last of which ends at `end`.

    ids, labels, labelled: as in scorer.inputs.records.DecodedRun.
    finished: (shard index, records read there in all) of shards that ended.
    """

    records: int
    ids: bytes
    labels: bytes
    labelled: bool
    finished: list[tuple[int, int]]
    end: Position


class PlainFiles:
    """Decodes with the compiled loop."""

    def __init__(self, schema: Schema, decode: DecodeFiles, find: FindRecord) -> None:
        self._decode, self._find, self._room = decode, find, memoryview(bytearray(ROOM))
        self._inputs = tuple((name.encode(), width) for name, width in schema.inputs.items())
        self._least = _FRAMING + 4 * sum(schema.inputs.values())  # bytes of a record: its floats are in it

    def decode(self, shards: Sequence[Source], position: Position, stop: Place, target: Target) -> PlainRun | None:
        """Decode the records from `position` on that start before `stop` into `target`; its own `stop` is not used.

        None where nothing of that is plain. Raises InputError where a shard has changed while it was read.
        """
        first, last = position.shard, stop[0] + (stop[1] > 0)
        enough = position.offset + (target.last - target.first) * self._least
        local = _local(shards[first : min(last, first + MAX_FILES)], enough)
        if not local:
            return None
        files = tuple(map(_file, local))
        until = stop[1] if first + len(files) == stop[0] + 1 else local[-1].stat.size
        where, rows = (files, position.offset, until, self._room), (target.first, target.last, target.sizes.matrix)
        found = self._decode(*where, self._inputs, tuple(target.features), *rows, target.label_bytes)
        done, changed, records, offset, ids, labels, labelled = found
        count = sum(records)
        if changed:
            local[done].check_unchanged()
            done, offset = done + 1, 0  # it is again what it was
        records[0] += position.record
        end = Position(first + done, records[done] if done < len(records) else 0, offset)
        if end == position:
            return None
        return PlainRun(count, ids, labels, labelled, [(first + i, records[i]) for i in range(done)], end)

    def find(self, shard: Source, offset: int, stop: int) -> int | None:
        """Where the first record from byte `offset` on and before `stop` starts, by all appearances.

        None where none seems to as far as a block's size from there; where the shard is no local TFRecord file, or has
        changed.
        """
        if not isinstance(shard, LocalFile):
            return None
        found = self._find((_file(shard),), offset, min(stop, offset + BLOCK_BYTES), self._room)
        return found if found >= 0 else None


def plain_files(schema: Schema) -> PlainFiles | None:
    """None where there are no compiled loops, or more inputs than they serve."""
    decode, find = loops.active.decode_files, loops.active.find_record
    return PlainFiles(schema, decode, find) if decode and find and len(schema.inputs) <= MAX_INPUTS else None


def _file(shard: LocalFile) -> File:
    return os.fsencode(shard.address), shard.stat.size, *shard.modified


def _local(shards: Sequence[Source], enough: int) -> list[LocalFile]:
    """The first ones, as far as they are local, and until they have `enough` bytes."""
    local: list[LocalFile] = []
    for shard in shards:
        if not isinstance(shard, LocalFile) or enough <= 0:
            break
        local.append(shard)
        enough -= shard.stat.size
    return local
