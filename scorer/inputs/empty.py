"""A shard of 0 bytes that is no error: it has no records."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scorer.inputs.position import Position
from scorer.inputs.records import DecodedBlock, Faults, decode_nothing
from scorer.inputs.source import FileStat, Reader, Source


@dataclass(frozen=True)
class EmptyShard:
    """`source`, which has 0 bytes and may have."""

    source: Source

    @property
    def address(self) -> str:
        return self.source.address

    @property
    def stat(self) -> FileStat:
        return self.source.stat

    @property
    def identity(self) -> Hashable:
        return self.source.identity

    @property
    def canonical(self) -> str:
        return self.source.canonical

    def open(self) -> Reader:
        return self.source.open()


@dataclass
class NoRows:
    """The rows of a block without records: see scorer.inputs.records.Rows."""

    ids: list[bytes] = field(default_factory=list)
    labels: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    label_sizes: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    labelled: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    bad: Faults = field(default_factory=dict)
    label_faults: Faults = field(default_factory=dict)

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        return True


class EmptyReader:
    """The record reader of an EmptyShard."""

    decode_into, find_record = staticmethod(decode_nothing), None

    size = 0

    def __init__(self, reader: Reader) -> None:
        self.check_unchanged, self.close = reader.check_unchanged, reader.close

    def block(self, position: Position) -> DecodedBlock:
        self.check_unchanged()
        return DecodedBlock(position.shard, 0, 0, 0, np.zeros(1, np.int64), last=True, lost=None, rows=NoRows())
