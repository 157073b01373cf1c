"""Kill `score` at random moments, resume it, and compare its bytes with those of an uninterrupted run.

    python -m tests.scorer.job.crash --kills 200 '../shared/data/yt8m/validate00[01]*.tfrecord'

Every run commits after each batch, so that kills land between, before and within commits, and takes another batch size
and another number of threads. A run that ends before it is killed is compared and the next
one starts again.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from scorer.model.find import BUNDLED

KILLED = -signal.SIGKILL
AT_WORK = 0.8  # share of the kills that wait for a commit first; the others come at any time from the start


@dataclass
class Tally:
    """What happened: kills, jobs finished and compared, and how many kills found how much committed."""

    kills: int = 0
    compared: int = 0
    found: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        found = ", ".join(f"{count} {what}" for what, count in sorted(self.found.items()))
        return f"{self.kills} kills ({found}), {self.compared} finished jobs compared, 0 bytes differ"


def crash(
    shards: Sequence[str], model: str, folder: Path, kills: int, seed: int = 0, *, embeddings: bool = False
) -> Tally:
    """Kill and resume until `kills` kills are survived and the job in hand has been finished and compared.

    embeddings: have them written too, beside the output.

    Raises AssertionError when a byte differs or a run ends in an unexpected way.
    """
    chance = random.Random(seed)
    began = time.monotonic()
    expected = _run_whole(shards, model, folder / "expected.csv", "--batch-size", "64", embeddings=embeddings)
    seconds = time.monotonic() - began
    tally = Tally()
    output = folder / "preds.csv"
    while tally.kills < kills:
        _one_job(shards, model, output, expected, seconds, kills, tally, chance, embeddings)
        tally.compared += 1
    return tally


def _one_job(
    shards: Sequence[str],
    model: str,
    output: Path,
    expected: dict[str, bytes],
    seconds: float,
    kills: int,
    tally: Tally,
    chance: random.Random,
    embeddings: bool,
) -> None:
    """Begin a job, kill and resume it until it ends by itself, compare, and clear up."""
    while True:
        options = ["--resume", "--batch-size", str(chance.choice((1, 7, 64, 150)))]
        options += ["--threads", chance.choice("12")]
        process = _start(shards, model, output, *options, embeddings=embeddings)
        if tally.kills < kills:
            if chance.random() < AT_WORK:
                _wait_for_work(process, output)
            try:
                process.wait(chance.uniform(0, seconds))
            except subprocess.TimeoutExpired:
                process.kill()
        _, errors = process.communicate()
        if process.returncode == KILLED:
            tally.kills += 1
            tally.found[_state(output, expected)] += 1
            continue
        assert process.returncode == 0, (process.returncode, errors)
        break
    assert _files_of(output) == expected
    for name in expected:
        output.with_name(output.name + name).unlink()


def _wait_for_work(process: subprocess.Popen[str], output: Path) -> None:
    """Until the process has changed its journal, or has ended."""
    journal = output.with_name(f".{output.name}.journal")
    before = stat_of(journal)
    while process.poll() is None and stat_of(journal) == before:
        time.sleep(0.002)


def stat_of(path: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        status = path.stat()
        return status.st_ino, status.st_mtime_ns
    return None


def _state(output: Path, expected: dict[str, bytes]) -> str:
    """What a kill left; an output under its final name must be whole."""
    journal = output.with_name(f".{output.name}.journal")
    if output.exists():
        assert output.read_bytes() == expected[""]
        return "between the last renames" if journal.exists() else "after the end"
    if not journal.exists():
        return "before the journal"
    lines = journal.read_bytes().count(b"\n") - 1
    return "before the first commit" if lines < 1 else "with commits to resume from"


def _run_whole(shards: Sequence[str], model: str, output: Path, *options: str, embeddings: bool) -> dict[str, bytes]:
    process = _start(shards, model, output, *options, embeddings=embeddings)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    return _files_of(output)


def _start(shards: Sequence[str], model: str, output: Path, *options: str, embeddings: bool) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "tests.scorer.job.committing",
        *shards,
        "-o",
        str(output),
        "--model",
        model,
        "--quiet",
        *options,
        *(["--embeddings", f"{output}.npy"] if embeddings else []),
    ]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _files_of(output: Path) -> dict[str, bytes]:
    """All that stands in the output's folder for it, by suffix; nothing hidden may be left."""
    assert not list(output.parent.glob(f".{output.name}.*")), "work was left behind"
    files = {path.name.removeprefix(output.name): path.read_bytes() for path in output.parent.glob(f"{output.name}*")}
    return {suffix: data.replace(output.name.encode(), b"OUTPUT") for suffix, data in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--model", default=str(BUNDLED))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embeddings", action="store_true", help="of a model that has them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        embeddings = options.embeddings
        print(crash(options.shards, options.model, Path(folder), options.kills, options.seed, embeddings=embeddings))


if __name__ == "__main__":
    main()
