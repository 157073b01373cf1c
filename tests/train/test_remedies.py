"""Options are named by the command alone: what is below it gives hints."""

from __future__ import annotations

from pathlib import Path

from tests.scorer.cli.test_remedies import OPTION, ROOT, texts
from train.cli import _parser
from train.remedies import TRAIN

COMMAND = {"cli.py", "runner.py", "overrides.py", "listing.py", "remedies.py"}


def test_the_words_of_train_name_its_own_options() -> None:
    known = set(OPTION.findall(_parser().format_help()))
    assert {option for words in TRAIN.values() for option in OPTION.findall(words)} <= known


def test_below_the_command_no_text_names_an_option() -> None:
    below = [path for path in (ROOT / "train").rglob("*.py") if path.name not in COMMAND]
    assert len(below) > 20
    wrong = [
        f"{Path(path).relative_to(ROOT)}:{line}: {text!r}"
        for path in below
        for line, text in texts(path)
        if OPTION.search(text)
    ]
    assert not wrong, "give the error a Hint, and the words for it to train/remedies.py"
