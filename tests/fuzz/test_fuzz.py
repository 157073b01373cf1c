"""Short forms of what the commands of this folder do at length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scorer.inputs import tfrecord
from tests.fuzz import check, flip
from tests.fuzz.inputs import try_input
from tests.loops import loops  # noqa: F401

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not what these tests are to spend their time on."""
    monkeypatch.setattr(tfrecord, "BLOCK_BYTES", 1 << 12)


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.iterdir()))
def test_replay(name: str) -> None:
    try_input((CORPUS / name).read_bytes())


def test_bits_of_a_shard(tmp_path: Path) -> None:
    tally = flip.tally_shard(check.GOOD, check.SCHEMA, str(tmp_path / "x"), step=7)
    print(*(f"{count:6,} {outcome}" for outcome, count in sorted(tally.items())), sep="\n")
    assert len(tally) >= 5


def test_bits_of_a_payload() -> None:
    tally = flip.tally_payloads(check.GOOD, check.SCHEMA, step=3)
    print(*(f"{count:6,} {outcome}" for outcome, count in sorted(tally.items())), sep="\n")
    assert len(tally) >= 4


def test_memory_is_flat() -> None:
    command = [sys.executable, "-m", "tests.fuzz.large", "100000", str(100 << 20)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    peaks = [int(line.split()[0]) for line in output.splitlines()]
    assert "50,000 good, 50,000 bad" in output
    assert "1 good, 1 bad" in output
    assert max(peaks) - peaks[0] < 20, output
