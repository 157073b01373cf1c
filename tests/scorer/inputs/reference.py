"""What a tf.Example means, in the plainest words: protobuf and a loop. Independent of scorer/ on purpose."""

from __future__ import annotations

import importlib.util
import math
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError


def example_type() -> Any:
    """tf.Example, from the schema that the `tfrecord` package carries.

    `import tfrecord` would import torch where torch is installed, so the generated module is loaded by its path.
    """
    package = importlib.util.find_spec("tfrecord")
    assert package
    assert package.submodule_search_locations
    place = Path(package.submodule_search_locations[0], "example_pb2.py")
    spec = importlib.util.spec_from_file_location("example_pb2", place)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Example


Example: Any = example_type()


class Video(NamedTuple):
    """A good record; floats are compared by their bytes."""

    floats: tuple[bytes, ...]
    id: bytes
    labels: tuple[int, ...] | None


def decode(payload: bytes, inputs: Mapping[str, int]) -> Video | None:
    """The record, or None when it is not the one asked for."""
    try:
        features = dict(Example.FromString(payload).features.feature)
    except DecodeError:
        return None
    floats = []
    for name, width in inputs.items():
        values = list(features[name].float_list.value) if name in features else []
        if len(values) != width or not all(map(math.isfinite, values)):
            return None
        floats.append(np.array(values, "<f4").tobytes())
    id = features.get("id", features.get("video_id"))
    if id is None or len(id.bytes_list.value) != 1 or not _good_id(id.bytes_list.value[0]):
        return None
    labels = features.get("labels")
    usable = labels is not None and labels.WhichOneof("kind") in (None, "int64_list")
    if labels is None or not usable or len(labels.int64_list.value) > 1 << 16:
        return Video(tuple(floats), id.bytes_list.value[0], None)
    return Video(tuple(floats), id.bytes_list.value[0], tuple(labels.int64_list.value))


def _good_id(id: bytes) -> bool:
    try:
        return 0 < len(id) <= 1024 and "Cc" not in map(unicodedata.category, id.decode())
    except UnicodeDecodeError:
        return False
