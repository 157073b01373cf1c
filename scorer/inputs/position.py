"""How far a job has read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Position:
    """The next unread record: index of its shard, its index there, and the byte at which it starts."""

    shard: int
    record: int
    offset: int


BEGINNING = Position(0, 0, 0)
