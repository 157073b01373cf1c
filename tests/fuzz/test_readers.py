"""A short run of each reader under damaged and forged inputs, and that nothing is overlooked that must not be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.readers.harness import READERS, try_all

COUNTS = {"run": 30, "soft_labels": 60, "journal": 25, "part": 25, "parquet": 40, "arrow": 40, "frames": 60}
"""Inputs that take about a second; 100 of the others."""


@pytest.mark.parametrize("name", READERS)
def test_no_input_is_more_than_refused(name: str, tmp_path: Path) -> None:
    if READERS[name] == "columns":
        pytest.importorskip("pyarrow.parquet", reason="pyarrow is absent (extra parquet)")
    results = try_all(name, 1, 0, COUNTS.get(name, 100), tmp_path)
    print(name, dict(results.outcomes), f"{results.mib:.0f} MiB")
    assert results.outcomes.total() == COUNTS.get(name, 100)


TOY = """
import ctypes, sys, time
from tests.fuzz.readers import harness

class Module:
    @staticmethod
    def make_toy(folder):
        def read(data):
            if data == b"raise": raise KeyError("planted")
            if data == b"grow": return len(bytearray(b"x") * (100 << 20))
            if data == b"hang": time.sleep(1000)
            if data == b"die": ctypes.string_at(0)
            if data == b"wrong": raise AssertionError("another row")
        def make(random):
            return harness_inputs.pop(0) if harness_inputs else b"well"
        return harness.FuzzedReader(make, read, 50)

FAULT = sys.argv[1].encode()
harness_inputs = [b"well"] * (harness._WARM_UP + 3) + [FAULT]
harness.READERS["toy"] = "toy"
harness.import_module = lambda name: Module
harness._MOST_FAILURES = 1
results = harness.watch("toy", 5, 0, 1e9, deadline=3.0 if FAULT == b"hang" else 1000.0)
print("\\n".join(results.failures))
"""
FAULTS = {
    "raise": "KeyError: 'planted'",
    "grow": "AssertionError: memory grew by 100 MiB, more than 50",
    "hang": "no answer within 3 s",
    "die": "the process died of SIGSEGV",
    "wrong": "AssertionError: another row",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found_and_named(fault: str) -> None:
    command = [sys.executable, "-c", TOY, fault]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    where = "toy: seed 5, input " if fault == "hang" else "toy: seed 5, input 3: "  # a slow machine hangs earlier
    assert output.startswith(where), output
    assert FAULTS[fault] in output
