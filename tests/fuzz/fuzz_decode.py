"""Coverage-guided fuzzing of framing and decoding, differential against protobuf. Needs the package atheris.

python -m tests.fuzz.fuzz_decode [libFuzzer options] CORPUS...      e.g. -max_total_time=600 /tmp/new tests/fuzz/corpus
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

with atheris.instrument_imports(include=["scorer"]):
    from tests.fuzz.inputs import try_input

if __name__ == "__main__":
    atheris.Setup(sys.argv, try_input)
    atheris.Fuzz()
