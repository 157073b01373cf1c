"""What must be known about an ONNX file before ONNX Runtime opens it, read off its bytes without the onnx package.

ONNX Runtime follows external data, that is a file name inside the model, while it opens a session. The contract is one
self-contained file, so such a model is refused before any session sees it. The walk below visits every message that can
hold a tensor (onnx.proto of github.com/onnx/onnx) and steps over the rest; it is iterative, and each byte is visited
once per level of nesting, so no file can make it run away.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from scorer.errors import ModelError

EXPORT_IT = "export it with `yt8m export`"

# message -> {field number: message that it holds}
_HOLDS_TENSORS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {},
}
_GRAPH, _EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 7, 13, 14, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def validate_and_hash(path: str) -> str:
    """Check that `path` is one whole, self-contained ONNX file and return its sha256 in hex.

    Raises:
        ModelError: absent, no file, unreadable, empty, not ONNX, cut short, or with data outside of itself.
    """
    if Path(path).is_dir():
        raise ModelError(f"{path} is a folder, not an ONNX file", remedy="name the .onnx file itself")
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise ModelError(f"{path} is empty", remedy=EXPORT_IT)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _check(path, data)
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such model file", remedy=EXPORT_IT) from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def stamp(path: str) -> tuple[int, ...]:
    """Inode, size and time of change: whether the file at `path` is still the one that `validate_and_hash` read."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _check(path: str, data: mmap.mmap) -> None:
    has_graph = False
    pending = [("ModelProto", 0, len(data))]
    try:
        while pending:
            message, start, end = pending.pop()
            for field, value, stop in _fields(data, start, end):
                has_graph |= message == "ModelProto" and field == _GRAPH
                if message == "TensorProto" and _is_external(field, value, stop):
                    raise ModelError(f"{path} keeps weights in another file", remedy=EXPORT_IT + " as one file")
                if stop >= 0 and field in _HOLDS_TENSORS[message]:
                    pending.append((_HOLDS_TENSORS[message][field], value, stop))
    except ValueError as error:
        raise ModelError(f"{path} is damaged or no ONNX file: {error}", remedy=EXPORT_IT) from None
    if not has_graph:
        raise ModelError(f"{path} is no ONNX file: it has no graph", remedy=EXPORT_IT)


def _is_external(field: int, value: int, stop: int) -> bool:
    """Whether a field of TensorProto refers to data outside: `external_data`, or `data_location` = EXTERNAL."""
    return field == _EXTERNAL_DATA or (field == _DATA_LOCATION and stop < 0 and value == _EXTERNAL)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Each field of the message in data[start:end]: (number, start, stop) of bytes; (number, value, -1) of a number.

    Raises ValueError where the bytes are not that.
    """
    position = start
    while position < end:
        key, position = _varint(data, position, end)
        field, kind = key >> 3, key & 7
        if field == 0:
            raise ValueError(f"no field number at byte {position}")
        if kind == _VARINT:
            value, position = _varint(data, position, end)
            yield field, value, -1
        elif kind in (_BYTES, _FIXED64, _FIXED32):
            length, position = (
                _varint(data, position, end) if kind == _BYTES else (8 if kind == _FIXED64 else 4, position)
            )
            if length > end - position:
                raise ValueError(f"byte {position} announces {length} bytes, {end - position} are left")
            if kind == _BYTES:
                yield field, position, position + length
            position += length
        else:
            raise ValueError(f"wire type {kind} at byte {position}")


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """The varint at `position` and the position after it."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number is cut short at byte {position}")
