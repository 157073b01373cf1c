"""Rows of the predictions file: the fast formatter equals the plain one, byte for byte, and CSV readers read both."""

from __future__ import annotations

import csv
import io
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from scorer.errors import ModelError, UsageError
from scorer.kernels.numpy_rows import format_rows_plain, quote_id
from scorer.kernels.packed import PackedStrings
from scorer.outputs import csv_rows as module
from scorer.outputs.csv_rows import Pairs
from tests.loops import loops  # noqa: F401

Table = tuple[list[bytes], NDArray[np.int64], NDArray[np.float32]]

PLAIN_IDS = st.text("ABCxyz019_-", min_size=1, max_size=12).map(str.encode)
ANY_IDS = st.one_of(
    PLAIN_IDS, st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")), st.binary()
)
MIDPOINTS = [np.float32(n / 2**m) for m in range(1, 24) for n in (1, 3, 2**m - 1) if n < 2**m]  # some are ties
SCORES = st.one_of(st.floats(0, 1, width=32), st.sampled_from(MIDPOINTS), st.sampled_from([0.0, -0.0, 1.0, 1e-45]))
LABELS = st.one_of(st.integers(0, 3861), st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 9, 10, 9999, 10_000]))


@st.composite
def tables(draw: st.DrawFn, ids: st.SearchStrategy[bytes], labels: st.SearchStrategy[int]) -> Table:
    names = draw(st.lists(ids, max_size=8))
    k = draw(st.integers(0, 12))
    count = len(names) * k
    flat_labels = draw(st.lists(labels, min_size=count, max_size=count))
    flat_scores = draw(st.lists(SCORES, min_size=count, max_size=count))
    shape = len(names), k
    return names, np.array(flat_labels, np.int64).reshape(shape), np.array(flat_scores, np.float32).reshape(shape)


def format_rows(ids: list[bytes], labels: NDArray[np.int64], scores: NDArray[np.float32]) -> bytes:
    return module.format_rows(PackedStrings.of(ids), labels, scores)


def big_table(videos: int, k: int = 10, seed: int = 0) -> Table:
    random = np.random.default_rng(seed)
    letters = np.frombuffer(b"ABCDEFGHIJabcdefghij0123456789_-", np.uint8)
    ids = [letters[row].tobytes() for row in random.integers(0, len(letters), (videos, 4))]
    scores = -np.sort(-random.random((videos, k), np.float32), axis=1)
    return ids, random.integers(0, 3862, (videos, k)), scores


def test_the_form_of_the_file() -> None:
    scores = np.array([[0.9876543, 0.5], [1.0, 0.0000004]], np.float32)
    rows = format_rows([b"a-_1", b"-x"], np.array([[0, 3861], [17, 9]]), scores)
    assert Pairs.header == b"VideoId,LabelConfidencePairs\n"
    assert rows == b"a-_1,0 0.987654 3861 0.500000\n-x,17 1.000000 9 0.000000\n"


@given(tables(PLAIN_IDS, st.integers(0, 3861)))
def test_fast_equals_plain_on_ordinary_rows(table: Table) -> None:
    assert format_rows(*table) == format_rows_plain(*table)


@given(tables(ANY_IDS, LABELS))
def test_fast_equals_plain_on_any_rows(table: Table) -> None:
    assert format_rows(*table) == format_rows_plain(*table)


@pytest.mark.parametrize("videos", [0, 1, 1023, 1024, 1025, 5000])
def test_fast_equals_plain_across_blocks(videos: int) -> None:
    table = big_table(videos)
    assert format_rows(*table) == format_rows_plain(*table)


def test_one_irregular_id_in_a_batch_changes_no_other_row() -> None:
    ids, labels, scores = big_table(3000)
    for irregular in (b"=1+1", b"a,b", b"x" * 200, b"nul\0", b""):
        named = [*ids[:1500], irregular, *ids[1501:]]
        assert format_rows(named, labels, scores) == format_rows_plain(named, labels, scores)


def test_every_midpoint_of_six_decimals_rounds_as_printf_does() -> None:
    """Scores n/2^m whose seventh decimal is a lone 5 are the only ties; %f breaks them to even."""
    scores = np.array(MIDPOINTS, np.float32)[:, None]
    ids, labels = [b"a"] * len(scores), np.zeros(scores.shape, np.int64)
    ties = [score for score in MIDPOINTS if (float(score) * 1e6) % 1 == 0.5]
    assert ties
    assert format_rows(ids, labels, scores) == format_rows_plain(ids, labels, scores)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_csv_readers_get_the_id_back(name: str) -> None:
    row = format_rows([name.encode()], np.array([[7]]), np.array([[0.5]], np.float32)).decode()
    [[read, pairs]] = csv.reader(io.StringIO(row, newline=""), strict=True)
    assert pairs == "7 0.500000"
    assert read in (name, "'" + name)


STARTS = [
    "=",
    "+",
    "@",
    "-",
    "\t",
    "\r",
    "\n",
    "\x0b",
    " ",
    "\xa0",
    "\ufeff",
    "\u200b",
    "\u2060",
    "\u3000",
    "＝",
    "＠",
    "＋",
    "－",
]


NOT_SHOWN = [
    *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x3164, 0xFFA0),
    *(
        code
        for first, last in ((0x180B, 0x180F), (0xFE00, 0xFE0F), (0xFFF0, 0xFFF8))
        for code in range(first, last + 1)
    ),
    *range(0xE0000, 0xE1000),
]
"""Default-ignorable code points that are no format characters (DerivedCoreProperties.txt of Unicode 16)."""


def starts_a_formula(letter: str) -> bool:
    """Whether it is such a sign or a guard, in any width, or may be left out before one."""
    if unicodedata.category(letter) in ("Cc", "Cf", "Zs", "Zl", "Zp") or ord(letter) in NOT_SHOWN:
        return True
    return unicodedata.normalize("NFKC", letter)[:1] in [*"=+-@'"]


def test_the_guard_covers_every_letter_that_can_stand_before_a_formula() -> None:
    """Over all of Unicode but letters; ids stay distinct, and the guard is the only change."""
    others = [code for code in range(0x110000) if unicodedata.category(chr(code))[0] in "MNPSZ" or code < 0x250]
    formats = [code for code in range(0x110000) if unicodedata.category(chr(code)) in ("Cc", "Cf")]
    letters = [chr(code) for code in sorted({*others, *formats, *NOT_SHOWN})]
    ids = [f"{letter}=1".encode() for letter in letters]
    labels, scores = np.zeros((len(ids), 1), np.int64), np.zeros((len(ids), 1), np.float32)
    rows = format_rows(ids, labels, scores)
    assert rows == format_rows_plain(ids, labels, scores)
    fields = [row for row in rows.split(b",0 0.000000\n") if row]
    assert len(set(fields)) == len(ids)
    for letter, name, field in zip(letters, ids, fields, strict=True):
        inner = field[1:-1].replace(b'""', b'"')
        assert inner in (name, b"'" + name)
        assert inner != name or not starts_a_formula(letter), f"U+{ord(letter):04X}"


@given(st.lists(st.text("=+-@'\"\u034f\uff07\uff0b\ufeff ab,", min_size=1, max_size=4), unique=True, max_size=30))
def test_no_two_ids_give_one_field(names: list[str]) -> None:
    assert len({quote_id(name.encode()) for name in names}) == len(names)


@pytest.mark.parametrize("start", STARTS)
def test_no_quoted_id_starts_a_formula(start: str) -> None:
    quoted = quote_id(f"{start}cmd|'/c calc'!A0".encode()).decode()
    [[read]] = csv.reader(io.StringIO(quoted, newline=""), strict=True)
    assert read.startswith("'")


STARTING = st.sampled_from([*STARTS, "'", "''", "'=", "é", "“", "−", "a", "\x7f", ""])


@given(st.lists(st.tuples(STARTING, st.text("=+-@'\"a,é \n\xa0", max_size=4)).map("".join).filter(bool), unique=True))
def test_two_ids_never_give_one_field(names: list[str]) -> None:
    ids = [name.encode() for name in names]
    labels, scores = np.zeros((len(ids), 1), np.int64), np.zeros((len(ids), 1), np.float32)
    rows = format_rows(ids, labels, scores)
    assert rows == format_rows_plain(ids, labels, scores)
    fields = [row[0] for row in csv.reader(io.StringIO(rows.decode(), newline=""), strict=True)]
    assert len(set(fields)) == len(ids)


def test_an_id_that_starts_with_a_dash_stays_bare() -> None:
    assert quote_id(b"-9aB_c") == b"-9aB_c"


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -0.001, 1.001])
def test_scores_outside_of_0_to_1_are_refused(score: float) -> None:
    scores = np.array([[1, 0.5], [score, 0.5]], np.float32)
    with pytest.raises(ModelError, match=r"the scores of video b'b' are not in \[0, 1\]"):
        format_rows([b"a", b"b"], np.array([[1, 2], [1, 2]]), scores)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UsageError, match="do not make rows"):
        format_rows([b"a", b"b"], np.zeros((1, 3), np.int64), np.zeros((1, 3), np.float32))
