"""One record through protobuf: the reference, and the way for every layout that is not the common one."""

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

from scorer.inputs.layouts import ID_KEYS, LABELS_KEY
from scorer.kernels.limits import MAX_ID_BYTES

MAX_LABELS = 1 << 16

_T = TypeVar("_T")


class InvalidExample(Exception):
    """Why a record is not the tf.Example asked for; whoever knows its place adds that."""


@dataclass
class Row:
    """One record. floats: float32 (width,) for each feature of the schema; labels: packed varints, None without any."""

    floats: list[NDArray[np.float32]]
    id: bytes
    labels: bytes | None


def parse(payload: bytes, inputs: Mapping[str, int]) -> Row:
    """One record through protobuf. Raises InvalidExample."""
    from google.protobuf.message import DecodeError

    try:
        example = example_type().FromString(payload)
    except DecodeError as error:
        raise InvalidExample(f"not a tf.Example ({error})") from None
    example.DiscardUnknownFields()  # for they would be serialised again below
    features = example.features.feature
    floats = [_floats(features, name, width) for name, width in inputs.items()]
    return Row(floats, _id(features), _labels(features))


def _values(features: Any, name: str, kind: str) -> Any:
    """The list that feature `name` holds; empty when it holds nothing. Raises Unfit for another kind of list."""
    feature = features[name]
    held = feature.WhichOneof("kind") or kind
    if held != kind:
        raise InvalidExample(f"feature {name!r} is a {held}, not a {kind}")
    return getattr(feature, kind).value


def _floats(features: Any, name: str, width: int) -> NDArray[np.float32]:
    if name not in features:
        raise InvalidExample(f"feature {name!r} is missing; the record has {_names(features)}")
    count = len(_values(features, name, "float_list"))
    if count != width:
        raise InvalidExample(f"feature {name!r} holds {count} values, the model wants {width}")
    # Serialised again, the list is packed and at the end: far faster than to iterate over it.
    values = np.frombuffer(features[name].float_list.SerializeToString()[-4 * count :], "<f4")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InvalidExample(f"feature {name!r} holds {values[wrong[0]]} at index {wrong[0]}")
    return values


def _names(features: Any) -> str:
    names = [repr(name[:40]) for name in sorted(features)[:8]]
    more = " ..." if len(features) > len(names) else ""
    return ", ".join(names) + more if names else "no features"


def _id(features: Any) -> bytes:
    key = next((key for key in ID_KEYS if key in features), None)
    if key is None:
        raise InvalidExample(f"there is no {' or '.join(map(repr, ID_KEYS))}; the record has {_names(features)}")
    values = _values(features, key, "bytes_list")
    if len(values) != 1:
        raise InvalidExample(f"feature {key!r} holds {len(values)} values, not one")
    return _checked_id(key, bytes(values[0]))


def _checked_id(key: str, value: bytes) -> bytes:
    if not value:
        raise InvalidExample(f"feature {key!r} is empty")
    if len(value) > MAX_ID_BYTES:
        raise InvalidExample(f"feature {key!r} is {len(value)} bytes long, more than {MAX_ID_BYTES}")
    if b"\0" in value:
        raise InvalidExample(f"feature {key!r} contains NUL")
    try:
        value.decode()
    except UnicodeDecodeError:
        raise InvalidExample(f"feature {key!r} is not UTF-8: {value[:20]!r}") from None
    return value


def _labels(features: Any) -> bytes | None:
    if LABELS_KEY not in features:
        return None
    values = _values(features, LABELS_KEY, "int64_list")
    if len(values) > MAX_LABELS:
        raise InvalidExample(f"feature {LABELS_KEY!r} holds {len(values)} values, more than {MAX_LABELS}")
    packed: bytes = features[LABELS_KEY].int64_list.SerializeToString()  # tag, length, varints; or nothing at all
    last_of_length = next((at for at in range(1, len(packed)) if packed[at] < 0x80), 0)
    return packed[last_of_length + 1 :]


@cache
def example_type() -> Any:
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
