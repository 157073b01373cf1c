"""Shards in a store on loopback beside the same shards on the local disk: rate of a job, and the core time of a video.

    python -m benchmarks.remote '../shared/data/yt8m/*.tfrecord' [--model NAME] [--rounds 5] [--copies 4]

Each round scores the shards from the disk, from http:// and from s3://, in turn, in this process; the server is another
one. Rates are compared within a round. A second table reads the shards and does nothing with them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

SERVER = """
import sys, time
from pathlib import Path
from tests.stores.object_server import ObjectServer
server = ObjectServer()
for path in sys.argv[1:]:
    server.put("/bucket/" + Path(path).name, Path(path).read_bytes())
with server.running() as url:
    print(url, flush=True)
    time.sleep(1e6)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=4, help="all shards joined, so many times, in one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shard = _joined(options.shards, options.copies, Path(folder))
        with subprocess.Popen([sys.executable, "-c", SERVER, shard], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            try:
                _measure(shard, server.stdout.readline().strip(), options, Path(folder))
            finally:
                server.kill()


def _joined(names: Sequence[str], copies: int, folder: Path) -> str:
    from scorer.inputs.discover import find_shards

    records = b"".join(Path(shard.address).read_bytes() for shard in find_shards(names))
    path = folder / "all.tfrecord"
    path.write_bytes(records * copies)
    return str(path)


def _measure(shard: str, url: str, options: argparse.Namespace, folder: Path) -> None:
    from scorer.model.find import open_model
    from scorer.model.model import Model

    keys = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    os.environ.update(keys, NO_PROXY="*")
    model, origin = open_model(options.model, lambda path: Model.open(path))
    print(f"{model.facts.path} ({origin}), a shard of {os.path.getsize(shard) / 1e6:.0f} MB")
    places = {"disk": shard, "http": f"{url}/bucket/all.tfrecord", "s3": "s3://bucket/all.tfrecord"}
    for name, action in (("score", lambda place: _score(place, model, folder)), ("read", _read)):
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for _ in range(options.rounds):
            for place, address in places.items():
                found[place].append(action(address))
        for place, rounds in found.items():
            rates, cores = zip(*rounds, strict=True)
            ratios = [there / here for (there, _), (here, _) in zip(rounds, found["disk"], strict=True)]
            rate, ratio, core = map(statistics.median, (rates, ratios, cores))
            print(
                f"{name:5} {place:4} {rate:10,.0f} a second, {ratio:.3f} of the disk's; {core * 1e6:8.2f} us of cores"
            )


def _score(address: str, model: object, folder: Path) -> tuple[float, float]:
    """Videos a second, and seconds of cores a video."""
    from scorer.inputs.discover import find_shards
    from scorer.job.run import score
    from scorer.job.spec import Job
    from scorer.system.signals import StopRequest

    job = Job(find_shards([address]), str(folder / "preds.csv"), resume_policy="restart")
    cores, began = time.process_time(), time.monotonic()
    report = score(job, model, StopRequest(), lambda progress: None)  # type: ignore[arg-type]
    videos = report.record.scored
    return videos / (time.monotonic() - began), (time.process_time() - cores) / videos


def _read(address: str) -> tuple[float, float]:
    """MB a second, and seconds of cores a MB."""
    from scorer.inputs.discover import find_shards

    (source,) = find_shards([address])
    buffer = memoryview(bytearray(2 << 20))
    cores, began = time.process_time(), time.monotonic()
    with closing(source.open()) as reader:
        for offset in range(0, source.stat.size, len(buffer)):
            reader.read_into(offset, buffer)
    size = source.stat.size / 1e6
    return size / (time.monotonic() - began), (time.process_time() - cores) / size


if __name__ == "__main__":
    main()
