"""Some rows of the table of attacks; the rest is for `python -m tests.attacks`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import ATTACKS, outcome

CODES = {"external data as protobuf writes it": 6, "names nested 100,000 deep": 6, "a hard link at the lock": 8}


@pytest.mark.parametrize("name", CODES)
def test_an_attack_ends_in_a_line_and_a_code(name: str, tmp_path: Path) -> None:
    (attack,) = (attack for attack in ATTACKS if attack.name == name)
    assert outcome(attack, tmp_path).startswith(f"| {attack.number} | {name} | {CODES[name]} | `")
