"""What a file is that was given as another kind of file: by its first bytes."""

from __future__ import annotations

import zlib

KIND_BYTES = 512
"""How many of them are asked for."""

ONNX, SAFETENSORS = "an ONNX model", "a safetensors file"
_UNPACK = "unpack it first"
_STARTS = (
    (b"\x1f\x8b", "compressed with gzip", f"{_UNPACK} (gunzip)"),
    (b"\xfd7zXZ\x00", "compressed with xz", f"{_UNPACK} (unxz)"),
    (b"BZh", "compressed with bzip2", f"{_UNPACK} (bunzip2)"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard", f"{_UNPACK} (unzstd)"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4", f"{_UNPACK} (unlz4)"),
    (b"version https://git-lfs", "a Git LFS pointer", "fetch the file itself (git lfs pull)"),
    (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a PyTorch checkpoint", ""),
    (b"\x80", "a Python pickle", ""),
    (b"PAR1", "a Parquet file", ""),
    (b"ARROW1", "an Arrow file", ""),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", ""),
    (b"\x93NUMPY", "a NumPy array", ""),
)
_TFRECORD = "give a TFRecord file of tf.Examples"


def kind_of(head: bytes, wanted: str = _TFRECORD) -> tuple[str, str] | None:
    """What a file with these first bytes is, and what to do; None for what is not known.

    wanted: what to do where the file is no form of the right one.
    """
    if head[8:10] == b'{"' and head[4:8] == bytes(4):  # first: its length may begin as another kind does
        return SAFETENSORS, wanted
    for start, what, remedy in _STARTS:
        if head.startswith(start):
            return what, remedy or wanted
    if head.startswith(b"PK\x03\x04"):
        checkpoint = b"data.pkl" in head
        return ("a PyTorch checkpoint", wanted) if checkpoint else ("a zip archive", f"{_UNPACK} (unzip)")
    if head[257:262] == b"ustar":
        return "a tar archive", f"{_UNPACK} (tar -x)"
    if head[:1] == b"\x08" and head[2:3] == b"\x12":
        return ONNX, wanted
    if not any(head):
        return "nothing but zeros", "copy it again: it was not copied whole"
    if _inflates(head):
        return "compressed with zlib", _UNPACK
    return _text(head, wanted)


def _inflates(head: bytes) -> bool:
    try:
        return bool(zlib.decompressobj().decompress(head))
    except zlib.error:
        return False


def _text(head: bytes, wanted: str) -> tuple[str, str] | None:
    try:
        text = head[:KIND_BYTES].decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character that is cut off
            return None
        text = head[: error.start].decode()
    if not all(character.isprintable() or character in "\t\r\n" for character in text):
        return None
    if text.lstrip().startswith("<"):
        return "an HTML or XML page", "download it again"
    return f"text that begins {text[:20]!r}", wanted
