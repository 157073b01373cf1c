"""One ONNX file: opened once, examined, hashed, and only then given to ONNX Runtime.

ONNX Runtime follows external data, that is a file name inside the model, while it opens a session. The contract is one
self-contained file, so such a model is refused before any session sees it. The scan below reads the file as protobuf
does (onnx.proto of github.com/onnx/onnx): it enters every message, counts every field and refuses whatever two
readers of protobuf could take for different things. It goes through the file once, from front to back, and its memory
is flat whatever the file holds.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Final

from scorer.errors import ModelError
from scorer.inputs.file_kinds import KIND_BYTES, ONNX, kind_of

EXPORT_IT = "export it with `yt8m export`"
MOST_BYTES: Final = (1 << 31) - 1
"""Of a file; protobuf reads no more."""
MOST_FIELDS: Final = 1 << 18
"""Of a file. An exported model has some thousands; each takes ONNX Runtime up to 0.3 KB, however small it is."""
DEEPEST: Final = 100
"""Messages within messages; protobuf reads no deeper."""

# message -> {field number: message that it holds}
MESSAGES: Final[dict[str, dict[int, str]]] = {
    "ModelProto": {
        7: "GraphProto",
        8: "OperatorSetIdProto",
        14: "StringStringEntryProto",
        20: "TrainingInfoProto",
        25: "FunctionProto",
        26: "DeviceConfigurationProto",
    },
    "TrainingInfoProto": {
        1: "GraphProto",
        2: "GraphProto",
        3: "StringStringEntryProto",
        4: "StringStringEntryProto",
    },
    "FunctionProto": {
        7: "NodeProto",
        9: "OperatorSetIdProto",
        11: "AttributeProto",
        12: "ValueInfoProto",
        14: "StringStringEntryProto",
    },
    "GraphProto": {
        1: "NodeProto",
        5: "TensorProto",
        11: "ValueInfoProto",
        12: "ValueInfoProto",
        13: "ValueInfoProto",
        14: "TensorAnnotation",
        15: "SparseTensorProto",
        16: "StringStringEntryProto",
    },
    "NodeProto": {5: "AttributeProto", 9: "StringStringEntryProto", 10: "NodeDeviceConfigurationProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        14: "TypeProto",
        15: "TypeProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {3: "TensorProto.Segment", 13: "StringStringEntryProto", 16: "StringStringEntryProto"},
    "TensorAnnotation": {2: "StringStringEntryProto"},
    "ValueInfoProto": {2: "TypeProto", 4: "StringStringEntryProto"},
    "TypeProto": {
        1: "TypeProto.Tensor",
        4: "TypeProto.Sequence",
        5: "TypeProto.Map",
        7: "TypeProto.Opaque",
        8: "TypeProto.SparseTensor",
        9: "TypeProto.Optional",
    },
    "TypeProto.Tensor": {2: "TensorShapeProto"},
    "TypeProto.SparseTensor": {2: "TensorShapeProto"},
    "TypeProto.Sequence": {1: "TypeProto"},
    "TypeProto.Optional": {1: "TypeProto"},
    "TypeProto.Map": {2: "TypeProto"},
    "TensorShapeProto": {1: "TensorShapeProto.Dimension"},
    "NodeDeviceConfigurationProto": {2: "ShardingSpecProto"},
    "ShardingSpecProto": {3: "IntIntListEntryProto", 4: "ShardedDimProto"},
    "ShardedDimProto": {2: "SimpleShardedDimProto"},
    "OperatorSetIdProto": {},
    "StringStringEntryProto": {},
    "DeviceConfigurationProto": {},
    "IntIntListEntryProto": {},
    "SimpleShardedDimProto": {},
    "TensorProto.Segment": {},
    "TypeProto.Opaque": {},
    "TensorShapeProto.Dimension": {},
}
_GRAPH, _EXTERNAL_DATA, _DATA_LOCATION = 7, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WINDOW, _LONGEST_VARINT = 1 << 16, 10

_FOR_PYTORCH = "`yt8m export --checkpoint RUN/best.safetensors` makes an ONNX file of a trained run"


class ModelFile:
    """An open ONNX file that was examined: one whole file without data outside of itself.

    path: as it was given. sha256: of the bytes, in hex.
    """

    def __init__(self, path: str) -> None:
        """
        Raises:
            ModelError: absent, no file, unreadable, empty, not ONNX, cut short, or with data outside of itself.
        """
        self.path = path
        self._descriptor = _open(path)
        try:
            self._status = os.fstat(self._descriptor)
            _check_status(path, self._status)
            _scan(path, self._descriptor, self._status.st_size)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            with open(self._descriptor, "rb", closefd=False) as file:
                self.sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            self.close()
            raise ModelError(f"{path} cannot be read: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """What opens these very bytes, whatever the path leads to by now; on systems without that, the path."""
        own = f"/proc/self/fd/{self._descriptor}"
        return own if os.path.exists(own) else self.path

    def check_unchanged(self) -> None:
        """Raise ModelError where the bytes may not be those that were examined any more."""
        there = os.fstat(self._descriptor) if self.address != self.path else _stat(self.path)
        if there is None or _version(there) != _version(self._status):
            raise ModelError(f"{self.path} changed while it was opened", remedy="try again")

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not be waited for
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model file", remedy=EXPORT_IT) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in it
        raise ModelError(f"{path} cannot be read: {error}") from None


def _check_status(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        if any(Path(path).glob("*.safetensors")):
            raise ModelError(f"{path} is the folder of a trained run, not an ONNX file", remedy=_FOR_PYTORCH)
        raise ModelError(f"{path} is a folder, not an ONNX file", remedy="name the .onnx file itself")
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file", remedy="copy it to one")
    if status.st_size == 0:
        raise ModelError(f"{path} is empty", remedy=EXPORT_IT)
    if status.st_size > MOST_BYTES:
        raise ModelError(f"{path} is no ONNX file: it has {status.st_size:,} bytes, more than 2 GB", remedy=EXPORT_IT)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None


def _version(status: os.stat_result) -> tuple[int, ...]:
    """What changes with the file and its bytes. The time of change cannot be set by whoever wrote them."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _scan(path: str, descriptor: int, size: int) -> None:
    scan = _Scan(descriptor, size)
    try:
        scan.run()
    except ValueError as error:
        what, remedy = _what_else(os.pread(descriptor, KIND_BYTES, 0), error)
        raise ModelError(f"{path} is {what}", remedy=remedy) from None
    if scan.external:
        raise ModelError(f"{path} keeps weights in another file", remedy=f"{EXPORT_IT} as one file")
    if not scan.has_graph:
        raise ModelError(f"{path} is no ONNX file: it has no graph", remedy=EXPORT_IT)


def _what_else(head: bytes, error: ValueError) -> tuple[str, str]:
    """What a file that is no ONNX file is, and what to do."""
    what, remedy = kind_of(head, _FOR_PYTORCH) or (ONNX, "")
    return (f"damaged or no ONNX file: {error}", EXPORT_IT) if what == ONNX else (f"{what}, not an ONNX file", remedy)


class _Scan:
    """Goes through a file field by field.

    external: whether a tensor refers to data outside, found where the scan ended. has_graph: whether there is a graph.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.external = self.has_graph = False
        self._descriptor, self._size = descriptor, size
        self._window, self._start = b"", 0
        self._fields = 0

    def run(self) -> None:
        """Raises ValueError where protobuf could not read the file, or could read it in another way, and OSError."""
        position = 0
        within = [("ModelProto", self._size)]  # messages that are open, and where they end
        while within and not self.external:
            message, end = within[-1]
            if position == end:
                within.pop()
                continue
            field, kind, value, position = self._field(position, end)
            self.has_graph |= message == "ModelProto" and field == _GRAPH and kind == _BYTES
            self.external = message == "TensorProto" and _is_external(field, kind, value)
            if kind == _BYTES:
                if (inner := MESSAGES[message].get(field)) is None:
                    position += value
                elif len(within) == DEEPEST:
                    raise ValueError(f"more than {DEEPEST} messages within each other at byte {position}")
                else:
                    within.append((inner, position + value))

    def head(self, position: int) -> bytes:
        """The next bytes, some more than a varint has unless the file ends. By pread: a file cut short is no signal."""
        here = position - self._start
        if not 0 <= here <= len(self._window) - 2 * _LONGEST_VARINT:
            self._window, self._start, here = os.pread(self._descriptor, _WINDOW, position), position, 0
        return self._window[here : here + 2 * _LONGEST_VARINT]

    def _field(self, position: int, end: int) -> tuple[int, int, int, int]:
        """The field at `position`: its number, its wire type, its value or length, and where value or bytes start."""
        self._fields += 1
        if self._fields > MOST_FIELDS:
            raise ValueError(f"more than {MOST_FIELDS:,} fields")
        key, after = self._varint(position, end)
        field, kind = key >> 3, key & 7
        if field == 0 or key >> 32:
            raise ValueError(f"no field number at byte {position}")
        if kind in (_FIXED64, _FIXED32):
            value, after = 0, after + (8 if kind == _FIXED64 else 4)
        elif kind in (_VARINT, _BYTES):
            value, after = self._varint(after, end, plain=kind == _BYTES)
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if after + (value if kind == _BYTES else 0) > end:
            raise ValueError(f"the field at byte {position} ends {after + value - end:,} bytes too late")
        return field, kind, value, after

    def _varint(self, position: int, end: int, *, plain: bool = True) -> tuple[int, int]:
        """The varint at `position` and where it ends. plain: it must be as short as it can be, as writers make it."""
        value = 0
        for count, byte in enumerate(self.head(position)[: min(_LONGEST_VARINT, end - position)]):
            value |= (byte & 0x7F) << 7 * count
            if byte < 0x80:
                if plain and count and byte == 0:
                    raise ValueError(f"a number longer than it need be at byte {position}")
                return value, position + count + 1
        raise ValueError(f"a number is cut short at byte {position}")


def _is_external(field: int, kind: int, value: int) -> bool:
    """Whether a field of TensorProto refers to data outside: any `external_data`, or a `data_location` but 0.

    Readers keep the low 32 bits of the latter.
    """
    return field == _EXTERNAL_DATA or (field == _DATA_LOCATION and kind == _VARINT and value & 0xFFFFFFFF != 0)
