"""Files of embeddings: a row of float32 for each row of the predictions, in their order, as .npy or Parquet.

While a job runs such a file grows beside the rows and is committed with them (scorer/outputs/file.py). An .npy file
says at its start how many rows it has, so it begins with a header of none, as long as any, which the last step
replaces. A Parquet file is made of what was kept once all of it is there, as scorer/outputs/parquet.py does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from scorer.errors import OutputError, UsageError
from scorer.inputs.addresses import is_address, redacted
from scorer.kernels.packed import PackedStrings
from scorer.outputs.parquet import WriteStream, exactly, in_groups, offsets
from scorer.outputs.paths import OutputPaths, output_paths
from scorer.outputs.row_format import Pack
from scorer.system.packages import required

_NPY_BYTES = 128  # of the header, which NumPy aligns to 64
_PREFIX = struct.Struct("<QQ")  # videos, bytes of ids
_GROUP_FLOATS = 16 << 20  # in a row group of Parquet: 64 MiB


class EmbeddingFormat(Protocol):
    """How embeddings become the bytes of a file."""

    @property
    def pack(self) -> Pack | None:
        """How what was kept becomes the file once it is all there; None where it is the file, except for its start."""

    def start(self, rows: int) -> bytes:
        """What such a file of so many rows begins with, always as long."""

    def rows(self, ids: PackedStrings, embeddings: NDArray[np.float32]) -> bytes:
        """What is kept of n videos: n ids and float32 (n, width)."""


@dataclass(frozen=True)
class Npy:
    """NumPy's own format, version 1.0: float32 (n, width), little-endian.

    https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """

    width: int
    pack = None

    def start(self, rows: int) -> bytes:
        says = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {self.width}), }}"
        length = _NPY_BYTES - 10
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", length) + says.ljust(length - 1).encode() + b"\n"

    def rows(self, ids: PackedStrings, embeddings: NDArray[np.float32]) -> bytes:
        return embeddings.astype("<f4", copy=False).tobytes()


class ParquetEmbeddings:
    """Columns `id` (string) and `embedding` (fixed-size list of float32)."""

    def __init__(self, width: int) -> None:
        """Raises UsageError where pyarrow is absent."""
        self._arrow, self._width = required("pyarrow", "parquet", "Parquet"), width

    def start(self, rows: int) -> bytes:
        return b""

    def rows(self, ids: PackedStrings, embeddings: NDArray[np.float32]) -> bytes:
        arrays = ids.sizes.astype("<i4"), embeddings.astype("<f4", copy=False)
        return _PREFIX.pack(len(ids), len(ids.data)) + b"".join([ids.data, *(a.tobytes() for a in arrays)])

    def pack(self, kept: BinaryIO, write: Callable[[bytes], object]) -> None:
        """In row groups of a fixed number of rows; the floats are not compressed, which would gain little."""
        parquet = required("pyarrow.parquet", "parquet", "Parquet")
        options = {"compression": "none", "use_dictionary": False, "write_statistics": ["id"]}
        with parquet.ParquetWriter(WriteStream(write), self._schema(), **options) as writer:
            for group in in_groups(self._tables(kept)):
                writer.write_table(group, row_group_size=len(group))

    def _schema(self) -> Any:
        pa = self._arrow
        vector = pa.list_(pa.field("element", pa.float32(), nullable=False), self._width)
        return pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("embedding", vector, nullable=False)])

    def _tables(self, kept: BinaryIO) -> Iterator[tuple[Any, int]]:
        """What each `rows` gave, and how many rows a group has."""
        pa, group = self._arrow, max(1, _GROUP_FLOATS // self._width)
        while prefix := kept.read(_PREFIX.size):
            n, id_bytes = _PREFIX.unpack(prefix)
            ids = exactly(kept, id_bytes)
            sizes = np.frombuffer(exactly(kept, 4 * n), "<i4")
            values = np.frombuffer(exactly(kept, 4 * n * self._width), "<f4")
            columns = [
                pa.StringArray.from_buffers(n, pa.py_buffer(offsets(sizes)), pa.py_buffer(ids)),
                pa.FixedSizeListArray.from_arrays(pa.array(values), type=self._schema().field("embedding").type),
            ]
            yield pa.Table.from_arrays(columns, schema=self._schema()), group


@dataclass(frozen=True)
class EmbeddingOutput:
    """Where embeddings go, and how they are written."""

    paths: OutputPaths
    format: EmbeddingFormat


def embedding_output(name: str, width: int = 1) -> EmbeddingOutput:
    """The file called `name`, for embeddings of this width.

    Raises:
        OutputError: it cannot be a file of this machine.
        UsageError: its name ends otherwise than in .npy or .parquet, or pyarrow is absent.
    """
    if is_address(name):
        raise OutputError(f"{redacted(name)}: embeddings go to a local file", remedy="send it there when it is done")
    paths = output_paths(name)
    if paths is None:
        raise OutputError(f"{name} is no file, and embeddings go to one", remedy="name a file")
    makers: dict[str, Callable[[int], EmbeddingFormat]] = {".npy": Npy, ".parquet": ParquetEmbeddings}
    kind = PurePath(name).suffix.lower()
    if kind not in makers:
        raise UsageError(f"{name}: embeddings are written as .npy or .parquet", remedy="name it one of these")
    return EmbeddingOutput(paths, makers[kind](width))
