"""Protobuf's wire format as it is written (protobuf.dev, "Encoding").

It is read in several places, each as strict as what it reads must be: records in the form that every common writer
gives (frames.py), records longer than memory (long_record.py), and model files, in which nothing may have two readings
(scorer/model/onnx_file.py).
"""

from __future__ import annotations

BYTES = 2
"""The wire type of what has a length: text, bytes, messages, packed numbers."""


def varint(value: int) -> bytes:
    """A whole number of up to 64 bits, 7 bits a byte, the lowest first; a negative one in two's complement."""
    rest, found = value & (1 << 64) - 1, bytearray()
    while rest > 0x7F:
        found.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*found, rest])


def field(number: int, content: bytes) -> bytes:
    """A field of a message that has a length."""
    return varint(number << 3 | BYTES) + varint(len(content)) + content
