"""The decoder, the writer and whole jobs against their peers, in one run.

    python -m benchmarks --plain runs/bilstm/best.safetensors --models models/bilstm.onnx models/bilstm.int8.onnx

Each is a benchmark of its own as well: benchmarks.decode, benchmarks.rows and benchmarks.score.
"""

from __future__ import annotations

import argparse
import subprocess
import sys


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plain", required=True, help="plain export, or the checkpoint to export plainly")
    parser.add_argument("--models", nargs="*", default=[], help="our exports of the same checkpoint")
    parser.add_argument("--data", nargs="+", default=["../shared/data/yt8m/*.tfrecord"], metavar="SHARD")
    parser.add_argument("--rounds", default="3")
    parser.add_argument("--plot", metavar="PNG")
    options = parser.parse_args()
    common = ["--data", *options.data, "--rounds", options.rounds]
    jobs = ["--plain", options.plain, "--models", *options.models]
    if options.plot:
        jobs += ["--plot", options.plot]
    for name, given in (("decode", common), ("rows", []), ("score", common + jobs)):
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *given])
        if done.returncode:
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
