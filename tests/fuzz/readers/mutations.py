"""Changes to bytes and to JSON, of the kinds that break readers."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 127, 128, 255, 256, 65535, 1 << 31, (1 << 31) - 1, 1 << 32, (1 << 62), (1 << 63) - 1, (1 << 64) - 1)
TEXTS = ("", "x", "\0", "\x1b[31m", "\n", "é", "\ud800", "x" * 5000, "[red]", "../../etc/passwd", "-1", "1e999", "NaN")
_DEEP = "deep deep deep"  # stands for a value that is nested more deeply than json.dumps would follow
_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    *NUMBERS,
    -(1 << 63),
    1 << 70,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    *TEXTS,
    [],
    {},
    [[]],
    [None] * 3,
    {"x": None},
    [0] * 2000,
    _DEEP,
)


def changed_bytes(random: Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """`data` with one to four changes."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = random.choice(_CHANGES)(random, data, others or (data,))
    return data


def _flip(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = random.randrange(max(1, len(data)))
    return data[:at] + bytes(byte ^ 1 << random.randrange(8) for byte in data[at : at + 1]) + data[at + 1 :]


def _set(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = random.randrange(max(1, len(data)))
    return data[:at] + bytes([random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))]) + data[at + 1 :]


def _number(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    kind = random.choice("BHIQ")
    size = struct.calcsize(f"<{kind}")
    packed = struct.pack(f"<{kind}", random.choice(NUMBERS) & (1 << 8 * size) - 1)
    at = random.randrange(max(1, len(data)))
    return data[:at] + packed + data[at + size :]


def _cut(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _remove(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = random.randrange(max(1, len(data)))
    return data[:at] + data[at + random.choice((1, 2, 4, 8, 64, random.randrange(1 + len(data)))) :]


def _repeat(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at, size = random.randrange(max(1, len(data))), random.choice((1, 4, 8, 100))
    return data[:at] + data[at : at + size] * random.choice((2, 3, 1000)) + data[at + size :]


def _insert(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    at = random.randrange(len(data) + 1)
    return data[:at] + random.randbytes(random.choice((1, 2, 8, 40))) + data[at:]


def _splice(random: Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = random.choice(others)
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


_CHANGES: tuple[Callable[[Random, bytes, Sequence[bytes]], bytes], ...] = (
    _flip,
    _flip,
    _set,
    _number,
    _cut,
    _remove,
    _repeat,
    _insert,
    _splice,
)


def changed_json(random: Random, value: Any) -> Any:
    """A copy of `value`, as `json.loads` gives it, with one to three places changed; texts that are JSON within too."""
    try:
        value = deepcopy(value)
    except RecursionError:  # of an earlier change
        value = None
    for _ in range(random.choice((1, 1, 2, 3))):
        value = _changed_at(random, value)
    return value


def _changed_at(random: Random, value: Any) -> Any:
    inner = [*value] if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    if inner and random.random() < 0.85:
        key = random.choice(inner)
        _change_entry(random, value, key)
        return value
    if isinstance(value, str) and value[:1] in ("{", "[") and random.random() < 0.85:
        try:
            return dumped(random, _changed_at(random, json.loads(value))).decode()
        except (ValueError, RecursionError):
            return random.choice(_VALUES)
    if type(value) is int and random.random() < 0.5:
        return value + random.choice((-1, 1, 1 << 20))
    return deepcopy(random.choice(_VALUES))


def _change_entry(random: Random, value: Any, key: Any) -> None:
    what = random.random()
    if what < 0.1:
        del value[key]
    elif what < 0.15 and isinstance(value, dict):
        value[random.choice(TEXTS)] = value.pop(key)
    elif what < 0.2 and isinstance(value, list):
        value.insert(key, deepcopy(value[key]))
    elif what < 0.25 and isinstance(value, dict):
        value[random.choice(TEXTS)] = deepcopy(random.choice(_VALUES))
    elif what < 0.3:
        other = random.choice([*value] if isinstance(value, dict) else range(len(value)))
        value[key], value[other] = value[other], value[key]
    else:
        value[key] = _changed_at(random, value[key])


def dumped(random: Random, value: Any, *, compact: bool = True) -> bytes:
    """`value` as JSON, now and then as other writers put it."""
    separators = (",", ":") if compact and random.random() < 0.8 else None
    text = json.dumps(value, separators=separators, ensure_ascii=random.random() < 0.8)
    if _DEEP in text:
        opening, closing = random.choice((("[", "]"), ('{"x":', "}")))
        depth = random.choice((50, 900, 1100, 100_000))
        text = text.replace(json.dumps(_DEEP), opening * depth + "1" + closing * depth)
    return text.encode("utf-8", "surrogatepass")
