"""The split that docs/results.md reports on: 0000 to 0119 of the validation shards train, 0120 to 0139 judge."""

from __future__ import annotations

import argparse
from pathlib import Path

SHARDS = "../shared/data/yt8m/validate"


def add_split(parser: argparse.ArgumentParser, kept: str) -> None:
    """Add --data and --valid, and --out, where what is `kept` goes."""
    parser.add_argument("--data", nargs="+", default=[f"{SHARDS}00*.tfrecord", f"{SHARDS}01[01]*.tfrecord"])
    parser.add_argument("--valid", nargs="+", default=[f"{SHARDS}01[23]*.tfrecord"])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=f"where the {kept} are kept")
