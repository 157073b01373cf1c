"""How far a job has read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Place: TypeAlias = tuple[int, int]
"""Index of a shard, and a byte there."""


@dataclass(frozen=True)
class Position:
    """The next unread record: index of its shard, its index there, and the byte at which it starts."""

    shard: int
    record: int
    offset: int

    @property
    def place(self) -> Place:
        return self.shard, self.offset


BEGINNING = Position(0, 0, 0)


def bytes_read(before: Sequence[int], end: Position, consumed: int | None) -> int:
    """Of all shards, what was read up to `end`.

    before: bytes of the shards in front of each, and at last of all. consumed: of a compressed shard in which `end` is,
    the bytes that were read. Where that is not known, positions go further than the shard, and count up to its end.
    """
    within = end.offset if consumed is None else consumed
    return min(before[end.shard] + within, before[min(end.shard + 1, len(before) - 1)])
