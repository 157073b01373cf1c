"""Rows of text in NumPy: cells of a fixed width side by side, padded with NULs, all of which one `translate` deletes.

No cell's own text may hold a NUL.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.kernels.numpy_rows import score_words
from scorer.kernels.packed import PackedStrings
from scorer.outputs.row_format import Labels, Scores

Cells: TypeAlias = NDArray[np.uint8]
_TABLE_BITS = 20
"""Labels of more bits are no model's of today; a table of all that are as large could fill the memory."""
_BLOCK_BYTES = 1 << 20  # of cells at once: about a core's cache


def text_rows(
    ids: PackedStrings,
    labels: Labels,
    scores: Scores,
    width: int,
    block: Callable[[Sequence[bytes], Labels, Scores], Iterable[Cells]],
) -> bytes:
    """The rows of n videos, a block at a time, of each of which `block` gives the cells from left to right.

    width: about how many bytes of cells a row takes.
    """
    names, step = ids.split(), max(1, _BLOCK_BYTES // width)
    blocks = (slice(start, start + step) for start in range(0, len(names), step))
    return b"".join(_joined(block(names[part], labels[part], scores[part])) for part in blocks)


def texts(values: Sequence[bytes]) -> Cells:
    """(n, width of the longest)."""
    array = np.array(values, np.bytes_)
    return array.view(np.uint8).reshape(len(array), -1)


def same(text: bytes, count: int) -> Cells:
    """`count` cells of one text."""
    return np.broadcast_to(np.frombuffer(text, np.uint8), (count, len(text)))


def listed(items: Sequence[Cells], separator: bytes, counts: NDArray[np.int64]) -> Cells:
    """(n, ...): each row's first counts[row] of k items, between them the separator, one byte.

    items: one or more arrays (n, k, width) whose texts together are an item.
    """
    n, k, _ = items[0].shape
    cells = np.concatenate([np.full((n, k, 1), ord(separator), np.uint8), *items], axis=2)
    cells[:, :1, 0] = 0
    if n and counts.min() < k:
        cells[np.arange(k) >= counts[:, None]] = 0
    return cells.reshape(n, cells.shape[1] * cells.shape[2])


def numbers(labels: Labels) -> Cells:
    """(n, k, width) of labels that are at least 0."""
    bits = max(12, int(labels.max(initial=0)).bit_length())
    if bits > _TABLE_BITS:
        return texts(labels.reshape(-1).astype(np.bytes_).tolist()).reshape(*labels.shape, -1)
    return _decimals(1 << bits)[labels]


def decimals(scores: Scores) -> Cells:
    """(n, k, 8): each with six decimals, as `%f` writes it."""
    return score_words(scores).view(np.uint8).reshape(*scores.shape, 8)


def _joined(cells: Iterable[Cells]) -> bytes:
    return np.concatenate([*cells], axis=1).tobytes().translate(None, b"\0")


@cache
def _decimals(count: int) -> Cells:
    """The numbers from 0 to `count` - 1."""
    return texts([b"%d" % number for number in range(count)])
