"""Options are named by the commands alone: what is below them gives hints, which each command puts in its own words."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from export.remedies import EXPORT
from scorer.cli import score
from scorer.cli.remedies import SCORE
from scorer.errors import Hint, RecordError, ResumeError, ShardError, Yt8mError
from train.remedies import TRAIN

ROOT = Path(__file__).parents[3]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
COMMANDS = (
    "scorer/cli/",
    "train/cli.py",
    "train/listing.py",
    "train/runner.py",
    "train/overrides.py",
    "train/remedies.py",
    "export/cli.py",
    "export/remedies.py",
    "export/report.py",  # what `export` prints
)


def test_a_remedy_and_the_words_of_a_command_make_one_line() -> None:
    damaged = ShardError("a.tfrecord", "torn", record=1, offset=9, remedy="download it again", hints=(Hint.SKIP,))
    assert str(damaged) == "a.tfrecord: record 1 at byte 9: torn; download it again"
    assert damaged.line(SCORE).endswith("torn; download it again, or use --on-error skip")


def test_a_line_stays_a_line_whatever_a_file_says() -> None:
    error = ShardError("a.tfrecord", "odd: " + "\x1b" * 9_000 + " at its end", record=1, offset=9, remedy="skip it")
    assert error.message.endswith("\x1b at its end"), "the exception has it all"
    line = str(error)
    assert len(line) < 4_100
    assert line.startswith("a.tfrecord: record 1 at byte 9: odd: \\x1b")
    assert line.endswith("\\x1b at its end; skip it")


def test_words_alone_do_not_begin_with_a_conjunction() -> None:
    invalid = RecordError("a.tfrecord", "no id", record=1, offset=9, hints=(Hint.SKIP, Hint.RESUME_LATER))
    assert invalid.line(SCORE).endswith("no id; use --on-error skip, then resume with --resume")
    left = ResumeError("an earlier run stopped", hints=(Hint.RESUME, Hint.RESTART))
    assert left.line(SCORE) == "an earlier run stopped; resume it with --resume, or start again with --restart"
    assert str(left) == "an earlier run stopped"


@pytest.mark.parametrize(
    "error",
    [
        Yt8mError("x", remedy="y", hints=(Hint.SKIP,)),
        RecordError("x", "z", record=1, offset=2, remedy="y", hints=(Hint.SKIP,)),
    ],
)
def test_an_error_keeps_all_of_it_on_its_way_between_processes(error: Yt8mError) -> None:
    error.message += " (5 videos are kept)"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert vars(again) == vars(error)


def test_some_command_has_words_for_every_hint() -> None:
    assert set(Hint) == {*SCORE, *TRAIN, *EXPORT}


def test_the_words_of_score_name_its_own_options() -> None:
    known = set(OPTION.findall(score._parser().format_help()))
    assert {option for words in SCORE.values() for option in OPTION.findall(words)} <= known


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """The string literals of a module with their lines, docstrings and the like left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            yield node.lineno, node.value


OTHERS_OPTIONS = ("scorer/outputs/object_sink.py",)
"""It names options of the program aws, which aborts uploads."""


@pytest.mark.parametrize("package", ["scorer", "train", "export"])
def test_below_the_commands_no_text_names_an_option(package: str) -> None:
    below = {path: path.relative_to(ROOT).as_posix() for path in (ROOT / package).rglob("*.py")}
    wrong = [
        f"{name}:{line}: {text!r}"
        for path, name in below.items()
        if not name.startswith(COMMANDS) and name not in OTHERS_OPTIONS
        for line, text in texts(path)
        if OPTION.search(text) and not re.search("pip |`yt8m ", text)
    ]
    assert not wrong, "give the error a Hint, and the words for it to the commands' remedies"
