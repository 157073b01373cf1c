"""Coverage-guided fuzzing of framing and decoding, differential against protobuf. Needs the package atheris.

python -m tests.fuzz.fuzz_decode [libFuzzer options] CORPUS...      e.g. -max_total_time=600 /tmp/new tests/fuzz/corpus
"""

from __future__ import annotations

import sys

import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

with atheris.instrument_imports(include=["scorer"]):
    from tests.fuzz.inputs import try_input
    from tests.loops import HERE, using


def try_all(data: bytes) -> None:
    """With the compiled loops and with those in NumPy."""
    for loops in HERE:
        with using(loops):
            try_input(data)


if __name__ == "__main__":
    atheris.Setup(sys.argv, try_all)
    atheris.Fuzz()
