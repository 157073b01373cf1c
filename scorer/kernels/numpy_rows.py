"""Rows of the predictions file in NumPy, as docs/formats.md has them.

`format_rows_plain` says what the bytes are; `format_rows` makes the same bytes for a whole batch at once. Every field
has a fixed place in a matrix of 8-byte words, looked up in tables of ready-made bytes and padded with NULs; one
`bytes.translate` then deletes the NULs. The words of a row (a dot is a NUL):

    "mjkV9SeQ" "Z8E....." ",0......" "0.987654" " 3861..." "0.500000" ... "\\n......."
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from scorer.kernels.packed import PackedStrings, check_shapes

_ID_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-"
_PLAIN_ID = re.compile(rb"[A-Za-z0-9_-]+")
GUARDS = (
    (b"", 0x00, 0x20),  # controls, the space
    (b"", 0x7F, 0x7F),  # U+007F delete
    *((b"", ord(sign), ord(sign)) for sign in "'+-=@"),
    (b"\xc2", 0x80, 0xA0),  # controls, U+00A0 no-break space
    (b"\xc2", 0xAD, 0xAD),  # U+00AD soft hyphen
    (b"\xcd", 0x8F, 0x8F),  # U+034F combining grapheme joiner
    (b"\xd8", 0x80, 0x85),  # U+0600 to U+0605, marks of Arabic numbers
    (b"\xd8", 0x9C, 0x9C),  # U+061C Arabic letter mark
    (b"\xdb", 0x9D, 0x9D),  # U+06DD
    (b"\xdc", 0x8F, 0x8F),  # U+070F
    (b"\xe0\xa2", 0x90, 0x91),  # U+0890, U+0891
    (b"\xe0\xa3", 0xA2, 0xA2),  # U+08E2
    (b"\xe1\x85", 0x9F, 0xA0),  # U+115F, U+1160 Hangul fillers
    (b"\xe1\x9a", 0x80, 0x80),  # U+1680 Ogham space
    (b"\xe1\x9e", 0xB4, 0xB5),  # U+17B4, U+17B5 Khmer vowels that are not shown
    (b"\xe1\xa0", 0x8B, 0x8F),  # U+180B to U+180F, Mongolian variation selectors
    (b"\xe2", 0x80, 0x81),  # U+2000 to U+207F: spaces, marks without a width, superscript signs
    (b"\xe2\x82", 0x8A, 0x8C),  # U+208A to U+208C, subscript signs
    (b"\xe2\xa9", 0xB5, 0xB6),  # U+2A75, U+2A76, two and three signs of equality
    (b"\xe2\x88", 0x92, 0x92),  # U+2212 minus
    (b"\xe3\x80", 0x80, 0x80),  # U+3000 ideographic space
    (b"\xe3\x85", 0xA4, 0xA4),  # U+3164 Hangul filler
    (b"\xef\xac", 0xA9, 0xA9),  # U+FB29 Hebrew plus
    (b"\xef\xb8", 0x80, 0x8F),  # U+FE00 to U+FE0F, variation selectors
    *((b"\xef\xb9", first, last) for first, last in ((0xA2, 0xA3), (0xA6, 0xA6), (0xAB, 0xAB))),  # small + - = @
    (b"\xef\xbb", 0xBF, 0xBF),  # U+FEFF byte-order mark
    *((b"\xef\xbc", sign, sign) for sign in (0x87, 0x8B, 0x8D, 0x9D, 0xA0)),  # full-width ' + - = @
    (b"\xef\xbe", 0xA0, 0xA0),  # U+FFA0 half-width Hangul filler
    (b"\xef\xbf", 0xB0, 0xBB),  # U+FFF0 to U+FFFB
    (b"\xf0\x91\x82", 0xBD, 0xBD),  # U+110BD
    (b"\xf0\x91\x83", 0x8D, 0x8D),  # U+110CD
    (b"\xf0\x93\x90", 0xB0, 0xBF),  # U+13430 to U+1343F
    (b"\xf0\x9b\xb2", 0xA0, 0xA3),  # U+1BCA0 to U+1BCA3
    (b"\xf0\x9d\x85", 0xB3, 0xBA),  # U+1D173 to U+1D17A
    (b"\xf3", 0xA0, 0xA0),  # U+E0000 to U+E0FFF: tags, variation selectors
)
"""What an id may not start with in a cell of a spreadsheet: some bytes, and then one from the first to the last. They
are the signs that make a formula, in all their widths, the guard itself, and what is stripped or not shown before one:
every space, format character (Cf) and default-ignorable code point of Unicode 16 (OWASP, "CSV Injection"). As in
native.c."""
_GUARDED = tuple(start + bytes([byte]) for start, first, last in GUARDS for byte in range(first, last + 1))
_LABEL_LIMIT = 10_000  # labels below it have at most the four digits that the table gives them
_BLOCK = 1024  # rows whose matrix (180 KB at ten pairs) stays in cache; four times as many take twice as long each
_LONGEST_FAST_ID = 64  # one longer id would widen every row of the matrix


def format_rows(ids: PackedStrings, labels: NDArray[np.int64], scores: NDArray[np.float32]) -> bytes:
    """As scorer.kernels.loops.Loops.format_rows."""
    check_shapes(labels, scores)
    if len(ids) != len(labels):
        raise ValueError(f"{len(ids)} ids and {len(labels)} rows")
    if scores.size and not (scores.min() >= 0 and scores.max() <= 1):  # a NaN fails both
        raise ValueError("scores that are not in [0, 1]")
    names, parts = ids.split(), [slice(i, i + _BLOCK) for i in range(0, len(ids), _BLOCK)]
    return b"".join(_format_block(names[part], labels[part], scores[part]) for part in parts)


def _format_block(ids: Sequence[bytes], labels: NDArray[np.int64], scores: NDArray[np.float32]) -> bytes:
    fields = _id_fields(ids)
    if not labels.size or labels.min() < 0 or labels.max() >= _LABEL_LIMIT or fields is None:
        return format_rows_plain(ids, labels, scores)
    id_words = -(-fields.itemsize // 8)
    words = np.zeros((len(ids), id_words + 2 * labels.shape[1] + 1), "<u8")
    cells = words.view(np.uint8)
    cells[:, : fields.itemsize] = fields.view(np.uint8).reshape(len(ids), -1)
    _fill_pairs(words[:, id_words:-1], labels, scores)
    cells[:, 8 * id_words] = ord(",")
    words[:, -1] = ord("\n")
    return words.tobytes().translate(None, b"\0")


def format_rows_plain(ids: Sequence[bytes], labels: NDArray[np.int64], scores: NDArray[np.float32]) -> bytes:
    """The reference that `format_rows` equals byte for byte: one row, one pair at a time. Arguments as there."""
    lines = []
    for name, row_labels, row_scores in zip(ids, labels.tolist(), scores.tolist(), strict=True):
        pairs = " ".join(f"{label:d} {abs(score):f}" for label, score in zip(row_labels, row_scores, strict=True))
        lines.append(quote_id(name) + b"," + pairs.encode() + b"\n")
    return b"".join(lines)


def quote_id(name: bytes) -> bytes:
    """An id as a CSV field: bare when made of [A-Za-z0-9_-] alone, else quoted (RFC 4180).

    A quoted id that a spreadsheet might take for a formula gets a leading apostrophe inside the quotes; so does one
    that starts with an apostrophe, so that no two ids give one field. A bare id may start with `-`, as many YouTube ids
    do: it holds nothing that could call a function.
    """
    if _PLAIN_ID.fullmatch(name):
        return name
    guard = b"'" if name.startswith(_GUARDED) else b""
    return b'"' + guard + name.replace(b'"', b'""') + b'"'


def _id_fields(ids: Sequence[bytes]) -> NDArray[np.bytes_] | None:
    """The ids as CSV fields in one NUL-padded array; None where an id is too long or holds a NUL itself."""
    joined = b"".join(ids)
    if joined.translate(None, _ID_BYTES) or not all(ids):
        ids = [quote_id(name) for name in ids]
        joined = b"".join(ids)
    lengths = set(map(len, ids))
    if b"\0" in joined or max(lengths, default=0) > _LONGEST_FAST_ID:
        return None
    if len(lengths) == 1:  # as in every real shard
        return np.frombuffer(joined, f"S{lengths.pop()}")
    return np.array(ids, dtype=np.bytes_)


def _fill_pairs(words: NDArray[np.uint64], labels: NDArray[np.int64], scores: NDArray[np.float32]) -> None:
    """Write each pair as the words ` label ` and `0.dddddd` into words (n, 2k)."""
    label_words, _, _ = _tables()
    words[:, 0::2] = label_words.take(labels)
    words[:, 1::2] = score_words(scores)


def score_words(scores: NDArray[np.float32]) -> NDArray[np.uint64]:
    """Each as a word of 8 bytes, `0.dddddd` with the digits that `%f` gives.

    A float32 times 10^6 has at most 24 + 14 significant bits: the product is exact in float64, and `rint` breaks ties
    to even as `%f` does.
    """
    _, thousandth_words, digit_words = _tables()
    millionths = np.rint(scores * np.float64(1e6)).astype(np.int64)
    thousandths = millionths // 1000
    return thousandth_words.take(thousandths) | digit_words.take(millionths - 1000 * thousandths)


@cache
def _tables() -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]:
    """Little-endian words: ` 0 `..` 9999 `, `0.000`..`1.000`, and `000`..`999` in bytes 5 to 7."""
    return (
        _words(b" %d " % label for label in range(_LABEL_LIMIT)),
        _words(b"%d.%03d" % divmod(thousandths, 1000) for thousandths in range(1001)),
        _words(b"\0\0\0\0\0%03d" % digits for digits in range(1000)),
    )


def _words(texts: Iterable[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(text.ljust(8, b"\0") for text in texts), "<u8")
