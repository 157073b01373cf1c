"""The record readers of Parquet and Arrow files: a row is a record, its columns are the features. See docs/formats.md.

A record's offset is made up: these files have none. It grows with the rows, from 0 to below the file's size.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scorer.errors import Hint, InputError, RecordError, ShardError, UsageError
from scorer.inputs.empty import NoRows
from scorer.inputs.example import label_fault
from scorer.inputs.layouts import ID_KEYS, LABELS_KEY
from scorer.inputs.position import Position
from scorer.inputs.protobuf import MAX_LABELS, InvalidExample, checked_id
from scorer.inputs.records import BLOCK_BYTES, DecodedBlock, Faults, Schema, decode_nothing
from scorer.inputs.source import Reader, Source
from scorer.inputs.tfrecord import MAX_BLOCK_RECORDS
from scorer.inputs.wire import varint
from scorer.kernels.packed import PackedStrings
from scorer.system.packages import required

NO_COLUMNS: Mapping[str, str] = {}
"""No feature has a column of another name."""
_PARQUET, _ARROW = b"PAR1", b"ARROW1"
_MOST_VALUES = 1 << 22  # of a column that are read at once: 16 MB of floats, 4,096 rows of YouTube-8M's
_BUFFER_BYTES = 1 << 20  # of a column that are read at once
MAX_BATCH_BYTES = 1 << 30
"""Of an Arrow file's record batches, on average: each is in memory as a whole."""


def check_columns(columns: Mapping[str, str], inputs: Iterable[str]) -> None:
    """Raise UsageError where a column is named for a feature that is not read; `inputs` are those of the model."""
    known = [*inputs, *ID_KEYS, LABELS_KEY]
    if unknown := columns.keys() - {*known}:
        reason = f"there is no feature {min(unknown)!r} to name a column for"
        raise UsageError(reason, remedy=f"choose from {', '.join(known)}")


class _Table(Protocol):
    """An open file of columns."""

    names: Sequence[str]

    def pieces(self, columns: Sequence[str], start: int, most: int) -> Iterator[tuple[Any, float]]:
        """Record batches of `columns` from row `start` on, of at most `most` rows, and where in the file each begins,
        from 0 to 1.
        """


class _ParquetTable:
    def __init__(self, file: io.RawIOBase) -> None:
        parquet = required("pyarrow.parquet", "parquet", "Parquet")
        self._file = parquet.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)
        self.names = self._file.schema_arrow.names

    def pieces(self, columns: Sequence[str], start: int, most: int) -> Iterator[tuple[Any, float]]:
        metadata, first = self._file.metadata, 0
        for group in range(metadata.num_row_groups):
            count = metadata.row_group(group).num_rows
            row, first = first, first + count
            if first <= start:
                continue
            rows = min(most, self._rows_at_once(group, columns))
            for piece in self._file.iter_batches(rows, row_groups=[group], columns=[*columns], use_threads=False):
                skipped = min(max(start - row, 0), len(piece))
                if skipped < len(piece):
                    yield piece.slice(skipped), (row + skipped) / metadata.num_rows
                row += len(piece)

    def _rows_at_once(self, group: int, columns: Sequence[str]) -> int:
        """How many rows of a group have no more than _MOST_VALUES in one column, on the average that it states.

        Lists of one number that is repeated take no room in a file, whatever their length.
        """
        found = self._file.metadata.row_group(group)
        stated = [found.column(index) for index in range(found.num_columns)]
        values = [column.num_values for column in stated if column.path_in_schema.split(".")[0] in columns]
        return max(1, int(_MOST_VALUES * found.num_rows // max(*values, 1, found.num_rows)))


class _ArrowTable:
    def __init__(self, file: io.RawIOBase) -> None:
        self._ipc = required("pyarrow.ipc", "parquet", "Arrow")
        self._opened = file
        opened = self._ipc.open_file(file)
        self.names = opened.schema.names
        size = file.seek(0, io.SEEK_END) // max(opened.num_record_batches, 1)
        if size > MAX_BATCH_BYTES:
            raise ValueError(
                f"its record batches have {size:,} bytes, more than {MAX_BATCH_BYTES:,}: write smaller ones"
            )

    def pieces(self, columns: Sequence[str], start: int, most: int) -> Iterator[tuple[Any, float]]:
        fields = [self.names.index(name) for name in columns]
        file = self._ipc.open_file(self._opened, options=self._ipc.IpcReadOptions(included_fields=fields))
        row, batches = 0, file.num_record_batches
        for index in range(batches):
            batch = file.get_batch(index)
            batch.validate(full=True)  # the file's own offsets are taken as they stand, wherever they lead
            for first in range(max(start - row, 0), len(batch), most):
                yield batch.slice(first, most), (index + first / len(batch)) / batches
            row += len(batch)


class _File(io.RawIOBase):
    """A source as pyarrow reads it."""

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader, self._size, self._at = reader, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = self._reader.read_into(self._at, memoryview(buffer).cast("B")) if self._at < self._size else 0
        self._at += count
        return count


class ColumnRows:
    """The rows of one record batch, as scorer.inputs.records.Rows."""

    def __init__(self, address: str, schema: Schema, batch: Any, record: int, offsets: NDArray[np.int64]) -> None:
        self._address, self._record, self._offsets = address, record, offsets
        self.bad: Faults = {}
        self.label_faults: Faults = {}
        self._features = [self._feature(name, width, batch) for name, width in schema.inputs.items()]
        self.ids = self._ids(batch)
        found = self._labels(batch)
        labels = PackedStrings.of([b"" if row in self.bad else found[row] or b"" for row in range(len(batch))])
        self.labels, self.label_sizes = np.frombuffer(labels.data, np.uint8), labels.sizes
        self.labelled = np.array([row not in self.bad and found[row] is not None for row in range(len(batch))], bool)

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        for values, to in zip(self._features, rows, strict=True):
            to[...] = values[first:last]
        return True

    def _refuse(self, row: int, reason: str) -> None:
        where = self._record + row, int(self._offsets[row])
        error = RecordError(self._address, reason, record=where[0], offset=where[1], hints=(Hint.SKIP,))
        self.bad.setdefault(row, error)

    def _feature(self, name: str, width: int, batch: Any) -> NDArray[np.float32]:
        """(n, width); a bad row's are zeros."""
        column = batch.column(name)
        lengths = _lengths(column)
        values = _floats(column)
        if (lengths == width).all():
            found = values.reshape(len(batch), width)
        else:
            found = np.zeros((len(batch), width), np.float32)
            ends = np.cumsum(np.maximum(lengths, 0))
            for row, (length, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True)):
                if length == width:
                    found[row] = values[end - width : end]
                else:
                    holds = "is null" if length < 0 else f"holds {length} values, the model wants {width}"
                    self._refuse(row, f"column {name!r} {holds}")
        for row in np.flatnonzero(~np.isfinite(found).all(axis=1)).tolist():
            index = int(np.flatnonzero(~np.isfinite(found[row]))[0])
            self._refuse(row, f"column {name!r} holds {found[row, index]} at index {index}")
        return found

    def _ids(self, batch: Any) -> list[bytes]:
        key = id_column(batch.schema.names)
        ids = []
        for row, value in enumerate(_bytes(batch.column(key))):
            try:
                if value is None:
                    raise InvalidExample(f"column {key!r} is null")
                ids.append(checked_id(key, value))
            except InvalidExample as invalid:
                self._refuse(row, str(invalid))
                ids.append(b"")
        return [b"" if row in self.bad else id for row, id in enumerate(ids)]

    def _labels(self, batch: Any) -> list[bytes | None]:
        """As packed varints; None for a row without any."""
        if LABELS_KEY not in batch.schema.names:
            return [None] * len(batch)
        return [self._packed_labels(row, labels) for row, labels in enumerate(batch.column(LABELS_KEY).to_pylist())]

    def _packed_labels(self, row: int, labels: object) -> bytes | None:
        if labels is None:
            return None
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            fault = f"column {LABELS_KEY!r} holds no list of whole numbers"
        elif len(labels) > MAX_LABELS:
            fault = f"column {LABELS_KEY!r} holds {len(labels)} values, more than {MAX_LABELS}"
        else:
            return b"".join(map(_varint, labels))
        self.label_faults[row] = label_fault(self._address, fault, self._record + row, int(self._offsets[row]))
        return None


def id_column(names: Sequence[str]) -> str:
    """Which of them holds the ids; "" for none."""
    return next((key for key in ID_KEYS if key in names), "")


def _lengths(column: Any) -> NDArray[np.int64]:
    """Of each row's list; -1 for null."""
    import pyarrow.compute

    lengths: NDArray[np.int64] = pyarrow.compute.list_value_length(column).cast("int64").fill_null(-1).to_numpy()
    return lengths


def _floats(column: Any) -> NDArray[np.float32]:
    """The values of all lists that are not null, one after the other; NaN for one that is."""

    values = column.drop_null().flatten().cast("float32", safe=False)
    found: NDArray[np.float32] = values.fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return found


def _bytes(column: Any) -> list[bytes | None]:
    import pyarrow.types

    if pyarrow.types.is_dictionary(column.type):  # repeated values by number
        column = column.dictionary_decode()
    found: list[bytes | None] = column.cast("large_binary").to_pylist()
    return found


_varint = cache(varint)  # few labels there are, and each is met often


class ColumnReader:
    """One open file of columns: see scorer.inputs.records.RecordReader. Raises InputError for columns that lack."""

    decode_into, find_record = staticmethod(decode_nothing), None

    def __init__(self, schema: Schema, source: Source, reader: Reader, kind: type[_ParquetTable | _ArrowTable]) -> None:
        self._schema, self._address, self.size = schema, source.address, source.stat.size
        self.check_unchanged, self.close = reader.check_unchanged, reader.close
        self._errors = (required("pyarrow", "parquet", "Parquet").ArrowException, OSError, ValueError, TypeError)
        self._most = min(MAX_BLOCK_RECORDS, BLOCK_BYTES // max(4 * sum(schema.inputs.values()), 1))
        self._next = -1  # the record that `_pieces` continues with
        try:
            self._table: _Table = kind(_File(reader, self.size))
        except self._errors as error:
            raise ShardError(self._address, _damage(error), record=0, offset=0) from None
        self._named, self._columns = self._chosen(self._table.names)
        self._pieces: Iterator[tuple[Any, float]] = iter(())
        self._ahead: tuple[Any, float] | None = None

    def block(self, position: Position) -> DecodedBlock:
        if position.record != self._next:
            self._pieces, self._ahead = self._table.pieces(self._columns, position.record, self._most), None
        try:
            piece = self._ahead or next(self._pieces, None)
            self._ahead = next(self._pieces, None)
            return self._block(position, piece)
        except self._errors as error:
            where = position.record, position.offset
            lost = ShardError(self._address, _damage(error), record=where[0], offset=where[1])
            return self._without_rows(position, lost)

    def _block(self, position: Position, piece: tuple[Any, float] | None) -> DecodedBlock:
        if piece is None:
            self.check_unchanged()
            return self._without_rows(position, None)
        batch, begins = self._renamed(piece[0]), piece[1]
        ends = self._ahead[1] if self._ahead else 1.0
        rows = np.arange(len(batch) + 1)
        made_up = (self.size * (begins + (ends - begins) * rows / len(batch))).astype(np.int64)
        offsets = np.clip(made_up, np.minimum(position.record + rows, 1), self.size - 1)
        offsets[0] = position.offset
        offsets = np.maximum.accumulate(offsets)
        if self._ahead is None:
            self.check_unchanged()
        self._next = position.record + len(batch)
        found = ColumnRows(self._address, self._schema, batch, position.record, offsets)
        where = position.shard, self.size, position.record, position.offset
        return DecodedBlock(*where, offsets - position.offset, self._ahead is None, None, found)

    def _without_rows(self, position: Position, lost: ShardError | None) -> DecodedBlock:
        where = position.shard, self.size, position.record, position.offset
        return DecodedBlock(*where, np.zeros(1, np.int64), True, lost, NoRows())

    def _renamed(self, batch: Any) -> Any:
        """With the features' names."""
        return type(batch).from_arrays([batch.column(name) for name in self._columns], self._named)

    def _chosen(self, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """The features to read, and the column of each."""
        called = self._schema.columns
        id = next((key for key in ID_KEYS if key in called), id_column(names) or ID_KEYS[0])
        wanted = {name: called.get(name, name) for name in (id, *self._schema.inputs)}
        if LABELS_KEY in called or LABELS_KEY in names:
            wanted[LABELS_KEY] = called.get(LABELS_KEY, LABELS_KEY)
        for column in wanted.values():
            if column not in names:
                shown = ", ".join(map(repr, names[:8])) or "none"
                reason = f"{self._address}: there is no column {column!r}; it has {shown}"
                raise InputError(reason, remedy="rename a column", hints=(Hint.COLUMNS, Hint.OTHER_MODEL))
        return [*wanted], [*wanted.values()]


def _damage(error: Exception) -> str:
    return f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"


class ColumnOpener:
    def __init__(self, schema: Schema, kind: type[_ParquetTable | _ArrowTable]) -> None:
        self._schema, self._kind = schema, kind

    def __call__(self, source: Source, reader: Reader) -> ColumnReader:
        return ColumnReader(self._schema, source, reader, self._kind)


class _Columns:
    """A format of columns that starts with some magic bytes."""

    def __init__(self, magic: bytes) -> None:
        self._magic = magic

    def recognises(self, head: bytes) -> bool:
        return head.startswith(self._magic)

    def opener(self, schema: Schema) -> ColumnOpener:
        kinds: Mapping[bytes, type[_ParquetTable | _ArrowTable]] = {_PARQUET: _ParquetTable, _ARROW: _ArrowTable}
        return ColumnOpener(schema, kinds[self._magic])


PARQUET, ARROW = _Columns(_PARQUET), _Columns(_ARROW)
