"""tf.Examples to arrays: the float features that a model asks for, the id, and the labels where there are any.

What counts as a record (everything else is a RecordError of that record alone):

- every feature of the schema is a float list of exactly its width, all values finite;
- the id is `id`, or `video_id` (the 2017 release) where there is no `id`: a bytes list of one value, valid UTF-8
  without NUL, 1 to MAX_ID_BYTES bytes;
- `labels` is absent, empty, or an int64 list of at most MAX_LABELS values (any int64: the caller judges the range);
- all other features are ignored, whatever they hold.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from scorer.errors import RecordError, ShardError
from scorer.framing import Frames

_T = TypeVar("_T")

ID_KEYS = ("id", "video_id")
LABELS_KEY = "labels"
MAX_ID_BYTES = 1024
MAX_LABELS = 1 << 16


@dataclass(frozen=True)
class Schema:
    """The features to read. inputs: name of each TFRecord float feature -> its width, in the order of the model."""

    inputs: Mapping[str, int]


@dataclass
class Records:
    """The decoded records of one block, n of them, good and bad.

    features: float32 (n, width) by name; rows of bad records hold no meaning.
    ids: n ids as they were in the records (UTF-8); b"" in bad ones.
    label_values, label_splits: int64 CSR, row i = values[splits[i]:splits[i + 1]].
    labelled: bool (n,) whether the record has a `labels` feature at all.
    bad: errors by row.
    """

    features: dict[str, NDArray[np.float32]]
    ids: list[bytes]
    label_values: NDArray[np.int64]
    label_splits: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    bad: dict[int, ShardError | RecordError]


@dataclass
class _Row:
    """One record as protobuf reads it."""

    floats: list[NDArray[np.float32]]
    id: bytes
    labels: NDArray[np.int64] | None


class _Unfit(Exception):
    """Why a record is not the tf.Example asked for; its place is added by whoever knows it."""


class Decoder:
    """Decodes blocks of records by one schema."""

    def __init__(self, schema: Schema) -> None:
        self._inputs = dict(schema.inputs)

    def decode(self, path: str, frames: Frames) -> Records:
        """The records of `frames`, a block of the shard `path`. Content errors are kept by row, not raised."""
        count = len(frames)
        features = {name: np.zeros((count, width), np.float32) for name, width in self._inputs.items()}
        bad = dict(frames.bad)
        rows: dict[int, _Row] = {}
        for row in range(count):
            if row not in bad:
                start = int(frames.starts[row])
                try:
                    rows[row] = _parse(frames.block[start : start + int(frames.lengths[row])], self._inputs)
                except _Unfit as unfit:
                    bad[row] = _record_error(path, frames, row, str(unfit))
        for row, parsed in rows.items():
            for name, values in zip(features, parsed.floats, strict=True):
                features[name][row] = values
        labels = [rows[row].labels if row in rows else None for row in range(count)]
        splits = np.cumsum([0, *(0 if values is None else len(values) for values in labels)], dtype=np.int64)
        return Records(
            features,
            [rows[row].id if row in rows else b"" for row in range(count)],
            np.concatenate([np.zeros(0, np.int64), *(values for values in labels if values is not None)]),
            splits,
            np.array([values is not None for values in labels], bool),
            bad,
        )


def _record_error(path: str, frames: Frames, row: int, reason: str) -> RecordError:
    offset = frames.offset + int(frames.starts[row]) - 12
    return RecordError(path, reason, record=frames.record + row, offset=offset, remedy="use --on-error skip to go on")


def _parse(payload: bytes, inputs: Mapping[str, int]) -> _Row:
    """One record through protobuf. Raises _Unfit."""
    try:
        features = _example_type().FromString(payload).features.feature
    except Exception as error:
        raise _Unfit(f"not a tf.Example ({error})") from None
    floats = [_floats(features, name, width) for name, width in inputs.items()]
    return _Row(floats, _id(features), _labels(features))


def _values(features: Any, name: str, kind: str) -> Any:
    """The list that feature `name` holds; empty when it holds nothing. Raises _Unfit for another kind of list."""
    feature = features[name]
    held = feature.WhichOneof("kind") or kind
    if held != kind:
        raise _Unfit(f"feature {name!r} is a {held}, not a {kind}")
    return getattr(feature, kind).value


def _floats(features: Any, name: str, width: int) -> NDArray[np.float32]:
    if name not in features:
        raise _Unfit(f"feature {name!r} is missing; the record has {_names(features)}")
    count = len(_values(features, name, "float_list"))
    if count != width:
        raise _Unfit(f"feature {name!r} holds {count} values, the model wants {width}")
    # Serialised again, the list is packed and at the end: far faster than to iterate over it.
    values = np.frombuffer(features[name].float_list.SerializeToString()[-4 * count :], "<f4")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise _Unfit(f"feature {name!r} holds {values[wrong[0]]} at index {wrong[0]}")
    return values


def _names(features: Any) -> str:
    names = sorted(features)
    return ", ".join(map(repr, names[:8])) + (" ..." if len(names) > 8 else "") if names else "no features"


def _id(features: Any) -> bytes:
    key = next((key for key in ID_KEYS if key in features), None)
    if key is None:
        raise _Unfit(f"there is no {' or '.join(map(repr, ID_KEYS))}; the record has {_names(features)}")
    values = _values(features, key, "bytes_list")
    if len(values) != 1:
        raise _Unfit(f"feature {key!r} holds {len(values)} values, not one")
    return _checked_id(key, bytes(values[0]))


def _checked_id(key: str, value: bytes) -> bytes:
    if not value:
        raise _Unfit(f"feature {key!r} is empty")
    if len(value) > MAX_ID_BYTES:
        raise _Unfit(f"feature {key!r} is {len(value)} bytes long, more than {MAX_ID_BYTES}")
    if b"\0" in value:
        raise _Unfit(f"feature {key!r} contains NUL")
    try:
        value.decode()
    except UnicodeDecodeError:
        raise _Unfit(f"feature {key!r} is not UTF-8: {value[:20]!r}") from None
    return value


def _labels(features: Any) -> NDArray[np.int64] | None:
    if LABELS_KEY not in features:
        return None
    values = _values(features, LABELS_KEY, "int64_list")
    if len(values) > MAX_LABELS:
        raise _Unfit(f"feature {LABELS_KEY!r} holds {len(values)} values, more than {MAX_LABELS}")
    return np.array(values, np.int64)


@cache
def _example_type() -> Any:
    """protobuf's tf.Example class, from the schema that the `tfrecord` package carries.

    `import tfrecord` would import torch where torch is installed, so the generated module is loaded by its path.
    """
    name = "tfrecord.example_pb2"
    if name not in sys.modules:
        folder = _found(importlib.util.find_spec("tfrecord")).submodule_search_locations
        spec = _found(importlib.util.spec_from_file_location(name, Path(_found(folder)[0], "example_pb2.py")))
        module = importlib.util.module_from_spec(spec)
        _found(spec.loader).exec_module(module)
        sys.modules[name] = module
    return sys.modules[name].Example


def _found(thing: _T | None) -> _T:
    if thing is None:
        raise ImportError("the package tfrecord is not installed whole: pip install --force-reinstall tfrecord")
    return thing
