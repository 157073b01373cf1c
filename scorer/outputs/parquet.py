"""The form of rows that is Parquet: typed lists that DuckDB, pandas and Spark read.

A Parquet file names its row groups at its end, so it cannot grow and be resumed. Until all rows are there they lie in a
plain binary form, and become Parquet then, in row groups of a fixed number of rows.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scorer.errors import OutputError
from scorer.kernels.packed import PackedStrings
from scorer.outputs.row_format import PLAIN, Labels, RowOptions, Scores, check_rows, kept_labels
from scorer.system.packages import required

_PREFIX = struct.Struct("<QQQ")  # videos, labels a video, bytes of ids
_MOST_LABELS = 1_310_720
"""Labels in a row group: 131,072 rows of 10, about as many as DuckDB's own have, in some 20 MB."""


class Parquet:
    """Columns `id` (string), `labels` (list of int32), `names` (list of string, only where there are some) and `scores`
    (list of float32), best first.
    """

    header = b""

    def __init__(self, options: RowOptions = PLAIN) -> None:
        """Raises UsageError where pyarrow is absent."""
        self._arrow = required("pyarrow", "parquet", "Parquet")
        self._threshold = options.threshold
        self._names = None if options.names is None else self._arrow.array([*options.names], self._arrow.string())

    def rows(self, ids: PackedStrings, labels: Labels, scores: Scores) -> bytes:
        check_rows(ids, labels, scores)
        arrays = ids.sizes.astype("<i4"), labels.astype("<i4"), scores.astype("<f4")
        return _PREFIX.pack(*labels.shape, len(ids.data)) + b"".join([ids.data, *(a.tobytes() for a in arrays)])

    def pack(self, rows: BinaryIO, write: Callable[[bytes], object]) -> None:
        parquet = required("pyarrow.parquet", "parquet", "Parquet")
        listed = [name for name in ("labels", "names") if name in self._schema().names]
        with parquet.ParquetWriter(
            WriteStream(write),
            self._schema(),
            compression="zstd",
            use_dictionary=[f"{name}.list.element" for name in listed],
        ) as writer:
            for group in in_groups(self._tables(rows)):
                writer.write_table(group, row_group_size=len(group))

    def _schema(self) -> Any:
        pa = self._arrow
        names = [] if self._names is None else [("names", pa.list_(pa.string()))]
        columns = [("id", pa.string()), ("labels", pa.list_(pa.int32())), *names, ("scores", pa.list_(pa.float32()))]
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns])

    def _tables(self, rows: BinaryIO) -> Iterator[tuple[Any, int]]:
        """What each `rows` gave, and how many rows a group has."""
        while prefix := rows.read(_PREFIX.size):
            n, k, id_bytes = _PREFIX.unpack(prefix)
            ids = exactly(rows, id_bytes)
            sizes = np.frombuffer(exactly(rows, 4 * n), "<i4")
            labels = np.frombuffer(exactly(rows, 4 * n * k), "<i4").reshape(n, k)
            scores = np.frombuffer(exactly(rows, 4 * n * k), "<f4").reshape(n, k)
            yield self._table(ids, sizes, labels, scores), max(1, _MOST_LABELS // k)

    def _table(self, ids: bytes, sizes: NDArray[np.int32], labels: NDArray[np.int32], scores: Scores) -> Any:
        pa = self._arrow
        counts = kept_labels(scores, self._threshold)
        chosen = np.arange(labels.shape[1]) < counts[:, None]
        kept = pa.array(labels[chosen])
        names = [] if self._names is None else [self._list(counts, self._names.take(kept))]
        columns = [
            pa.StringArray.from_buffers(len(sizes), pa.py_buffer(offsets(sizes)), pa.py_buffer(ids)),
            self._list(counts, kept),
            *names,
            self._list(counts, pa.array(scores[chosen])),
        ]
        return pa.Table.from_arrays(columns, schema=self._schema())

    def _list(self, counts: NDArray[np.int64], values: Any) -> Any:
        return self._arrow.ListArray.from_arrays(self._arrow.array(offsets(counts)), values)


def in_groups(tables: Iterable[tuple[Any, int]]) -> Iterator[Any]:
    """The rows of `tables` in tables of a fixed number of rows, which stands beside each; the last has what is left.

    Each is in one piece: pages are cut where pieces end.
    """
    arrow = required("pyarrow", "parquet", "Parquet")
    waiting: list[Any] = []
    count = 0
    for table, size in tables:
        waiting.append(table)
        count += len(table)
        if count >= size:
            joined = arrow.concat_tables(waiting)
            whole = count - count % size
            yield from (joined.slice(at, size).combine_chunks() for at in range(0, whole, size))
            waiting, count = [joined.slice(whole)], count - whole
    if count:
        yield arrow.concat_tables(waiting).combine_chunks()


def offsets(sizes: NDArray[np.int32] | NDArray[np.int64]) -> NDArray[np.int32]:
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)


def exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise OutputError("the rows so far end within a batch: they changed meanwhile")
    return data


class WriteStream(io.RawIOBase):
    """What pyarrow writes to."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._position = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._write(piece)
        self._position += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._position
