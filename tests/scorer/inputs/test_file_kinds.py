"""What is given as a shard and is none is named for what it is, however it is read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from scorer.errors import RecordError, ShardError
from scorer.inputs.batching import batches
from scorer.inputs.file_kinds import SAFETENSORS, kind_of
from scorer.inputs.records import Schema
from tests import shards
from tests.scorer.inputs.test_batching import payload
from tests.scorer.inputs.test_example import real_shards

SCHEMA = Schema({"rgb": 3, "audio": 1})
SHARD = b"".join(shards.frame(payload(number)) for number in range(9))


def zipped(name: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, SHARD)
    return made.getvalue()


def tarred() -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        member = tarfile.TarInfo("x.tfrecord")
        member.size = len(SHARD)
        archive.addfile(member, io.BytesIO(SHARD))
    return made.getvalue()


def array() -> bytes:
    made = io.BytesIO()
    np.save(made, np.zeros(9))
    return made.getvalue()


KINDS = {
    "compressed with gzip; unpack it first (gunzip)": gzip.compress(gzip.compress(SHARD)),
    "compressed with xz; unpack it first (unxz)": lzma.compress(SHARD),
    "compressed with bzip2; unpack it first (bunzip2)": bz2.compress(SHARD),
    "compressed with zlib; unpack it first": gzip.compress(zlib.compress(SHARD)),
    "compressed with Zstandard; unpack it first (unzstd)": b"\x28\xb5\x2f\xfd\x24\x09" + bytes(range(40)),
    "a zip archive; unpack it first (unzip)": zipped("x.tfrecord"),
    "a PyTorch checkpoint; give a TFRecord file of tf.Examples": zipped("archive/data.pkl"),
    "a Python pickle; give a TFRecord file of tf.Examples": pickle.dumps({"weights": [0.5] * 9}),
    "a tar archive; unpack it first (tar -x)": tarred(),
    "a NumPy array; give a TFRecord file of tf.Examples": array(),
    "a safetensors file; give a TFRecord file of tf.Examples": (40).to_bytes(8, "little")
    + b'{"weight":{}}'
    + b" " * 27,
    "an ONNX model; give a TFRecord file of tf.Examples": b"\x08\x0a\x12\x07pytorch\x1a\x032.9" + bytes(30),
    "a Git LFS pointer; fetch the file itself (git lfs pull)": b"version https://git-lfs.github.com/spec/v1\noid",
    "an HTML or XML page; download it again": b"<?xml version='1.0'?><Error>NoSuchKey</Error>",
    "text that begins 'Id,Labels\\n1,\u00e9'; give a TFRecord file of tf.Examples": b"Id,Labels\n1,\xc3\xa9",
    "nothing but zeros; copy it again: it was not copied whole": bytes(4096),
}


def read(path: Path) -> None:
    for _ in batches(shards.sources([str(path)]), SCHEMA, 4):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_other_files_are_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x").write_bytes(KINDS[kind])
    with pytest.raises(ShardError) as error:
        read(tmp_path / "x")
    assert str(error.value) == f"{tmp_path / 'x'}: record 0 at byte 0: not a TFRecord file but {kind}"


def test_a_damaged_shard_is_not_taken_for_something_else() -> None:
    for bit in range(96):
        damaged = bytearray(SHARD)
        damaged[bit // 8] ^= 1 << bit % 8
        assert kind_of(bytes(damaged)) is None


def frame_level(id: str, frames: int, **context: list[float]) -> bytes:
    """A SequenceExample as YouTube-8M's frame-level shards have them."""
    entries = [shards.entry("id", shards.bytes_feature(id.encode())), shards.entry("labels", shards.int64_feature([3]))]
    entries += [shards.entry(name, shards.float_feature(values)) for name, values in context.items()]
    one = shards.field(1, shards.bytes_feature(b"\x80\x81\x82"))
    lists = [shards.field(1, shards.field(1, name) + shards.field(2, one * frames)) for name in (b"rgb", b"audio")]
    return shards.example_of(entries) + shards.field(2, b"".join(lists))


def test_a_frame_level_shard_is_named(tmp_path: Path) -> None:
    shards.write_shard(tmp_path / "x", [frame_level("a", 5), frame_level("b", 6)])
    with pytest.raises(RecordError) as error:
        read(tmp_path / "x")
    says = "a frame-level record (a SequenceExample of 'audio', 'rgb'), not a video-level tf.Example"
    assert str(error.value) == f"{tmp_path / 'x'}: record 0 at byte 0: {says}; give video-level shards"
    assert error.value.hints == (), "no option helps"


def test_video_level_features_beside_frames_are_read(tmp_path: Path) -> None:
    path = shards.write_shard(tmp_path / "x", [frame_level("a", 5, rgb=[1, 2, 3], audio=[4])])
    (batch,) = batches(shards.sources([path]), SCHEMA, 4)
    assert batch.features["rgb"].tolist() == [[1, 2, 3]]


def test_real_frame_level_shards_are_named() -> None:
    """Theirs have the means too; a model of other features finds frames only."""
    for path in real_shards("frame-level/*.tfrecord"):
        with pytest.raises(RecordError, match=r"a frame-level record \(a SequenceExample of 'audio', 'rgb'\)"):
            read(path)


@pytest.mark.parametrize("length", [b"\x80\x02", b"\x1f\x8b", b"BZ"])
def test_safetensors_is_known_whatever_its_length_begins_with(length: bytes) -> None:
    head = length + bytes(6) + b'{"a":{"dtype":"F32"'
    assert (kind_of(head) or ("",))[0] == SAFETENSORS
