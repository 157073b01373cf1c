"""Attacks of the kinds that SECURITY.md promises to withstand, tried again: a row for each, with what happens.

python -m tests.attacks                 a table in Markdown: attack, exit code, the line that is printed
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from scorer.errors import printable
from tests import shards
from tests.onnx_models import save_model, save_ort
from tests.scorer.model.test_contract import LOUD, wrong_label
from tests.scorer.model.test_model import SMALL
from tests.scorer.model.test_onnx_file import ENTRY, field, with_tensor
from tests.scorer.system.test_signals import endless

Command = list[str]
_INTERRUPTED = ["timeout", "--preserve-status", "-s", "INT", "5"]
_YT8M = Path(sys.executable).with_name("yt8m")  # as a user types it: Python puts no folder of its own before the others
_INPUTS: dict[str, int] = SMALL["inputs"]


@dataclass(frozen=True)
class Attack:
    """number: in the list of the review that found it. plant: prepares a folder, and gives the command to run in it."""

    number: int
    name: str
    plant: Callable[[Path], Command]


def _shard(folder: Path, id: str = "v0", scale: float = 1.0) -> str:
    features = {name: np.linspace(0.1, scale, width).astype(np.float32) for name, width in _INPUTS.items()}
    return shards.write_shard(folder / "a.tfrecord", [shards.example(id, [1], features)])


def _score(folder: Path, *more: str, shard: str = "") -> Command:
    if not (folder / "m.onnx").exists():
        save_model(folder / "m.onnx", **SMALL)
    return ["score", shard or _shard(folder), "--model", "m.onnx", "-o", "preds.csv", "--quiet", *more]


def _model(data: bytes) -> Callable[[Path], Command]:
    def plant(folder: Path) -> Command:
        (folder / "m.onnx").write_bytes(data)
        return _score(folder)

    return plant


def _ort(folder: Path) -> Command:
    save_ort(save_model(folder / "other.onnx", **SMALL), folder / "m.onnx")
    return _score(folder)


def _label_of_its_own(folder: Path) -> Command:
    onnx.save(wrong_label(), folder / "m.onnx")
    return _score(folder, shard=_shard(folder, scale=LOUD))


def _sparse(folder: Path) -> Command:
    (folder / "m.onnx").touch()
    os.truncate(folder / "m.onnx", 40 << 30)
    return _score(folder)


def _endless(folder: Path) -> Command:
    return [*_INTERRUPTED, "inspect", endless(folder / "m.onnx")]


def _names(folder: Path) -> Command:
    model = onnx.load(save_model(folder / "m.onnx", **SMALL, names=["x"] * SMALL["labels"]))
    next(entry for entry in model.metadata_props if entry.key == "yt8m.names").value = "[" * 100_000
    onnx.save(model, folder / "m.onnx")
    return ["inspect", "m.onnx"]


def _planted_module(folder: Path) -> Command:
    for name in ("json", "numpy", "struct", "scorer"):
        (folder / f"{name}.py").write_text("open('ran', 'w')")
    return _score(folder, "--restart")


def _planted(kind: str, plant: Callable[[Path], object]) -> Callable[[Path], Command]:
    def planted(folder: Path) -> Command:
        (folder / "victim").write_text("precious")
        plant(folder / f".preds.csv.{kind}")
        return _score(folder, "--resume")

    return planted


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    path.symlink_to("victim")


def _hard_link(path: Path) -> None:
    os.link(path.with_name("victim"), path)


def _forged(path: Path) -> None:
    path.write_text(json.dumps({"job": {"format": 2, "options": {}, "shards": []}}) + "\n" + '{"complete":{}}\n' * 2)


def _zeros(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _id(id: str) -> Callable[[Path], Command]:
    return lambda folder: _score(folder, shard=_shard(folder, id))


ATTACKS = (
    Attack(1, "external data under a key of 2^32 and more", _model(with_tensor(field(13, ENTRY, above=1)))),
    Attack(1, "external data as protobuf writes it", _model(with_tensor(field(13, ENTRY)))),
    Attack(2, "ONNX Runtime's own format instead of ONNX", _ort),
    Attack(4, "a label of -10^15 once features are loud", _label_of_its_own),
    Attack(5, "a sparse file of 40 GB", _sparse),
    Attack(5, "2^18 empty fields", _model(with_tensor(b"") + field(7, field(1, b"")) * (1 << 18))),
    Attack(5, "a loop of 2^62 while the model opens, then SIGINT", _endless),
    Attack(6, "names nested 100,000 deep", _names),
    Attack(7, "json.py, numpy.py, struct.py, scorer.py beside the shards", _planted_module),
    Attack(8, "a hard link at the lock", _planted("lock", _hard_link)),
    Attack(8, "a symbolic link at the journal", _planted("journal", _link)),
    Attack(9, "a forged journal without options", _planted("journal", _forged)),
    Attack(10, "a pipe at the journal", _planted("journal", _fifo)),
    Attack(10, "a sparse journal of 1 TB", _planted("journal", _zeros)),
    Attack(12, "an id with a line feed", _id('a"\nVICTIM,0 1.000000')),
    Attack(12, "an id with a separator of lines", _id("a\u2028b")),
    Attack(12, "an id with a joiner before a formula", _id("\u034f=1+1")),
)


def outcome(attack: Attack, folder: Path) -> str:
    """A row of the table."""
    command = attack.plant(folder)
    before = _INTERRUPTED if command[: len(_INTERRUPTED)] == _INTERRUPTED else []
    given = [*before, str(_YT8M), *command[len(before) :]]
    done = subprocess.run(given, cwd=folder, capture_output=True, text=True, check=False)
    lines = done.stderr.strip().splitlines()
    assert "Traceback" not in done.stderr, done.stderr
    line = lines[-1] if lines else ""
    if not done.returncode:
        line = printable((folder / "preds.csv").read_text().splitlines()[1])
    assert not (folder / "ran").exists(), "code of the folder ran"
    if (folder / "victim").exists():
        assert (folder / "victim").read_text() == "precious"
    line = line.replace(f"{folder}/", "").replace("|", "\\|")
    return f"| {attack.number} | {attack.name} | {done.returncode} | `{line}` |"


def main() -> None:
    print("| | attack | exit code | what is printed, or the row that is written |\n|---|---|---|---|")
    for attack in ATTACKS:
        with tempfile.TemporaryDirectory() as folder:
            print(outcome(attack, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
