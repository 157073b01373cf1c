"""The way through protobuf beside another program's registrations of the same names."""

from __future__ import annotations

import subprocess
import sys

import pytest

TENSORFLOW = """
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
file = descriptor_pb2.FileDescriptorProto(name="tensorflow/core/example/example.proto", package="tensorflow")
file.message_type.add(name="Example").field.add(name="elsewhere", number=7, type=5, label=1)
file.message_type.add(name="SequenceExample")
pool = descriptor_pool.Default()
pool.Add(file)
Theirs = message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
assert Theirs.FromString(Theirs(elsewhere=3).SerializeToString()).elsewhere == 3
"""
OURS = """
from scorer.inputs import protobuf
from tests import shards
row = protobuf.parse(shards.example("x", [3], {"a": [1, 2]}), {"a": 2})
assert (row.id, row.floats[0].tolist(), row.labels) == (b"x", [1, 2], bytes([3]))
"""


@pytest.mark.parametrize("code", [TENSORFLOW + OURS, OURS + TENSORFLOW], ids=["theirs first", "ours first"])
def test_tensorflow_may_be_in_the_same_process(code: str) -> None:
    """It registers tensorflow.Example in protobuf's default pool, where a second file of that name is a TypeError."""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
