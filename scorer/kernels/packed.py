"""What the loops take and give, none of it an object a row: packed strings, sizes of rows, metric records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedStrings:
    """n strings, one after the other in `data`. sizes: int64 (n,)."""

    data: bytes
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of(cls, strings: Sequence[bytes]) -> PackedStrings:
        return cls(b"".join(strings), np.array([*map(len, strings)], np.int64))

    def split(self) -> list[bytes]:
        return [self.data[start:stop] for start, stop in pairwise([0, *np.cumsum(self.sizes).tolist()])]


class RowSizes:
    """What decoding says of each of n rows, in views of one int64 (4, n) `matrix` that the compiled loop fills.

    ids, labels: bytes of the id and of the packed labels. labelled: 1 where there is a `labels` at all, else 0.
    records: bytes of the record in its file, header and all.
    """

    def __init__(self, rows: int) -> None:
        self.matrix = np.empty((4, rows), np.int64)
        self.ids, self.labels, self.labelled, self.records = self.matrix


def check_shapes(labels: NDArray[Any], scores: NDArray[Any]) -> None:
    """ValueError unless they are int64 and float32 of one shape (n, k)."""
    if labels.ndim != 2 or labels.shape != scores.shape or labels.dtype != np.int64 or scores.dtype != np.float32:
        raise ValueError(f"labels {labels.dtype} {labels.shape} and scores {scores.dtype} {scores.shape}")


def metric_record(k: int) -> np.dtype[Any]:
    """What the metrics need of a labelled video with k predictions: its distinct true labels, and which were found."""
    return np.dtype([("positives", "<i4"), ("scores", "<f4", (k,)), ("hits", "?", (k,))])


def unpack_varints(packed: PackedStrings) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """int64 CSR of packed varints: row i is values[splits[i]:splits[i + 1]].

    A varint is 7 bits a byte, the lowest first, with bit 7 set in all bytes but the last.
    """
    octets = np.frombuffer(packed.data, np.uint8)
    final = octets < 0x80
    ends = np.flatnonzero(final)
    widths = np.diff(ends, prepend=-1)
    values = octets[ends].astype(np.int64)
    for i in range(1, int(widths.max(initial=0))):
        values = np.where(widths > i, values << 7 | octets[ends - i] & 0x7F, values)
    before = np.concatenate([[0], np.cumsum(final)])
    return values, before[np.concatenate([[0], np.cumsum(packed.sizes)])]
