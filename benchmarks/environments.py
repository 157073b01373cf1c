"""An environment of its own for every peer, made once and kept in the user's cache folder.

python -m benchmarks.environments            make them all and say where they are
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
PEERS = {"tfrecord": "tfrecord + onnxruntime", "tfdata": "tf.data + onnxruntime", "beam": "Apache Beam + onnxruntime"}


def folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "yt8m-edge"


def make(name: str, requirements: list[str]) -> Path:
    """An environment with what pip makes of `requirements`; returns its interpreter.

    Made again when the requirements change; a half-made one is thrown away.
    """
    key = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    place = folder() / f"{name}-{key}"
    python, finished = place / "bin" / "python", place / "finished"
    if not finished.exists():
        print(f"making {place}", file=sys.stderr, flush=True)
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *requirements], check=True)
        finished.touch()
    return python


def peer(name: str) -> Path:
    """The interpreter of benchmarks/peers/NAME.txt."""
    return make(name, (HERE / "peers" / f"{name}.txt").read_text().split())


if __name__ == "__main__":
    for name in PEERS:
        print(f"{name:<10}{peer(name)}")
