"""Damaged and forged inputs for one reader, as long as wanted.

python -m tests.fuzz.readers --reader checkpoint --seconds 600
python -m tests.fuzz.readers --reader checkpoint --seed 1 --input 4711      one again, with its traceback
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.fuzz.readers.harness import READERS, Results, reader, try_all, watch


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.readers", description=__doc__.splitlines()[0])
    parser.add_argument("--reader", choices=READERS, required=True)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=int, metavar="N", help="input N alone, in this process")
    options = parser.parse_args()
    if options.input is not None:
        with tempfile.TemporaryDirectory() as folder:
            _show(options.reader, try_all(options.reader, options.seed, options.input, 1, Path(folder)))
        return 0
    results = watch(options.reader, options.seed, 0, options.seconds)
    _show(options.reader, results)
    return 1 if results.failures else 0


def _show(name: str, results: Results) -> None:
    for failure in results.failures:
        print(failure)
    with tempfile.TemporaryDirectory() as folder:
        bound = reader(name, Path(folder)).mib
    outcomes = ", ".join(f"{count:,} {outcome}" for outcome, count in results.outcomes.most_common())
    failed = len(results.failures)
    print(f"{name}: {results.outcomes.total() + failed:,} inputs: {outcomes}; {failed} failures")
    print(f"{name}: memory grew by {results.mib:.0f} MiB at most (bound {bound}), {results.seconds:.2f} s at most")


if __name__ == "__main__":
    sys.exit(main())
