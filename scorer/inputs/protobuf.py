"""One record through protobuf: the reference, and the way for every layout that is not the common one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.inputs.frames import apart, dequantised, list_names
from scorer.inputs.layouts import ID_KEYS, LABELS_KEY
from scorer.inputs.records import Level
from scorer.kernels.limits import MAX_ID_BYTES

MAX_LABELS = 1 << 16
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
"""A line feed in an id, or Unicode's separators of lines and paragraphs, would forge a line for every tool that reads
lines, an escape reach the terminal."""
_OPTIONAL, _REPEATED = 1, 3  # these and the types are FieldDescriptorProto's
_FLOAT, _INT64, _STRING, _BYTES = 2, 3, 9, 12


class InvalidExample(Exception):
    """Why a record is not the tf.Example asked for; whoever knows where it is adds that."""


class FrameLevel(InvalidExample):
    """The record is a SequenceExample that has features of frames."""


@dataclass
class Row:
    """One record.

    floats: float32 (width,) for each feature of the schema. labels: packed varints, None without any. label_fault: why
    there are none though the record has such a feature.
    """

    floats: list[NDArray[np.float32]]
    id: bytes
    labels: bytes | None
    label_fault: str = ""


def parse(payload: bytes, inputs: Mapping[str, int], level: Level = "auto") -> Row:
    """One record through protobuf. Raises InvalidExample."""
    from google.protobuf.message import DecodeError

    try:
        example = message_type("Example").FromString(payload)
    except DecodeError as error:
        raise InvalidExample(f"not a tf.Example ({error})") from None
    example.DiscardUnknownFields()  # for they would be serialised again below
    features = example.features.feature
    averages = level == "frame" or (level == "auto" and any(name not in features for name in inputs))
    floats = _averaged(payload, inputs) if averages else None
    try:
        if level == "frame" and floats is None:
            raise InvalidExample(f"no frame-level record: there are not all frames; the record has {_names(features)}")
        floats = floats or [_floats(features, name, width) for name, width in inputs.items()]
        row = Row(floats, _id(features), None)
    except InvalidExample:
        if level != "frame" and floats is None and (frames := _frame_features(payload)):
            reason = f"a frame-level record (a SequenceExample of {frames}), not a video-level tf.Example"
            raise FrameLevel(reason) from None
        raise
    try:
        row.labels = _labels(features)
    except InvalidExample as fault:
        row.label_fault = str(fault)
    return row


def _averaged(payload: bytes, inputs: Mapping[str, int]) -> list[NDArray[np.float32]] | None:
    """The means of a SequenceExample's frames, None where it has not all of them. Raises InvalidExample."""
    from google.protobuf.message import DecodeError

    try:
        lists = message_type("SequenceExample").FromString(payload).feature_lists.feature_list
    except DecodeError:
        return None
    found = {name: next((each for each in list_names(name) if each in lists), None) for name in inputs}
    names = [name for name in found.values() if name is not None]
    if len(names) < len(inputs):
        return None
    if fault := apart({name: len(lists[name].feature) for name in names}):
        raise InvalidExample(fault)
    return [_mean(name, lists[name].feature, width) for name, width in zip(names, inputs.values(), strict=True)]


def _mean(name: str, frames: Any, width: int) -> NDArray[np.float32]:
    kinds = {frame.WhichOneof("kind") for frame in frames}
    if kinds == {"bytes_list"}:
        data = [b"".join(frame.bytes_list.value) for frame in frames]
        _check_width(name, map(len, data), width)
        whole = np.frombuffer(b"".join(data), np.uint8).reshape(-1, width)
        return dequantised(whole.sum(axis=0, dtype=np.uint32), len(frames))
    if kinds != {"float_list"}:
        raise InvalidExample(f"the frames of {name!r} are not all bytes or all floats")
    values = [np.array(frame.float_list.value, np.float32) for frame in frames]
    _check_width(name, map(len, values), width)
    if not np.isfinite(values).all():
        raise InvalidExample(f"the frames of {name!r} hold numbers that are not finite")
    mean: NDArray[np.float64] = np.array(values, np.float64).sum(axis=0) / len(values)
    return mean.astype(np.float32)


def _check_width(name: str, widths: Iterable[int], width: int) -> None:
    for number, found in enumerate(widths):
        if found != width:
            raise InvalidExample(f"frame {number} of {name!r} holds {found} values, the model wants {width}")


def _frame_features(payload: bytes) -> str:
    """The names of a SequenceExample's lists of frames; "" for any other record."""
    from google.protobuf.message import DecodeError

    try:
        lists = message_type("SequenceExample").FromString(payload).feature_lists.feature_list
    except DecodeError:
        return ""
    return _names(lists) if lists else ""


def _values(features: Any, name: str, kind: str) -> Any:
    """What the list in feature `name` holds, if anything. Raises InvalidExample for another kind of list."""
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
    return checked_id(key, bytes(values[0]))


def checked_id(key: str, value: bytes) -> bytes:
    """`value` if it can be an id. Raises InvalidExample."""
    if not value:
        raise InvalidExample(f"feature {key!r} is empty")
    if len(value) > MAX_ID_BYTES:
        raise InvalidExample(f"feature {key!r} is {len(value)} bytes long, more than {MAX_ID_BYTES}")
    try:
        text = value.decode()
    except UnicodeDecodeError:
        raise InvalidExample(f"feature {key!r} is not UTF-8: {value[:20]!r}") from None
    if control := _CONTROL.search(text):
        raise InvalidExample(f"feature {key!r} contains the control character U+{ord(control[0]):04X}")
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
def message_type(name: str) -> Any:
    """protobuf's class of "Example" or "SequenceExample".

    They are kept in a pool of our own: TensorFlow in the same process registers its own under the same names.
    """
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.DescriptorPool()
    pool.Add(_schema())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"tensorflow.{name}"))


def _schema() -> Any:
    """tensorflow/core/example/feature.proto and example.proto."""
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    file = FileDescriptorProto(name="yt8m/example.proto", package="tensorflow", syntax="proto3")
    for name, kind in (("BytesList", _BYTES), ("FloatList", _FLOAT), ("Int64List", _INT64)):
        _message(file.message_type, name, value=(kind, _REPEATED))
    kinds = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}
    feature = _message(file.message_type, "Feature", **kinds)
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    _map(_message(file.message_type, "Features"), "feature", "Feature")
    _message(file.message_type, "FeatureList", feature=("Feature", _REPEATED))
    _map(_message(file.message_type, "FeatureLists"), "feature_list", "FeatureList")
    _message(file.message_type, "Example", features="Features")
    _message(file.message_type, "SequenceExample", context="Features", feature_lists="FeatureLists")
    return file


def _message(messages: Any, name: str, **fields: Any) -> Any:
    """Add a message to `messages`. Its fields, numbered from 1: a type or a message's name, or that and a label."""
    message = messages.add(name=name)
    for number, (field, what) in enumerate(fields.items(), 1):
        kind, label = what if isinstance(what, tuple) else (what, _OPTIONAL)
        typed = {"type_name": f".tensorflow.{kind}"} if isinstance(kind, str) else {"type": kind}
        message.field.add(name=field, number=number, label=label, **typed)
    return message


def _map(message: Any, name: str, to: str) -> None:
    """Give an empty message the field `name`, a map from strings to the message `to`."""
    entry = f"{name.title().replace('_', '')}Entry"
    _message(message.nested_type, entry, key=_STRING, value=to).options.map_entry = True
    message.field.add(name=name, number=1, label=_REPEATED, type_name=f".tensorflow.{message.name}.{entry}")
