"""Shards in a store on loopback beside the same shards on the local disk: rate of a job, and the core time of a video.

    python -m benchmarks.remote '../shared/data/yt8m/*.tfrecord' [--model NAME] [--rounds 5] [--copies 4]
    python -m benchmarks.remote '../shared/data/yt8m/*.tfrecord' --apart --milliseconds 30

Each round scores the shards from the disk, from http:// and from s3://, in turn, in this process; the server is another
one. Rates are compared within a round. A second table reads the shards and does nothing with them. The shards are
joined to one, unless they are to stay --apart; the server may take some --milliseconds before each answer.
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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scorer.model.predictor import Predictor

SERVER = """
import sys, time
from pathlib import Path
from tests.stores.object_server import ObjectServer
server = ObjectServer()
server.seconds = float(sys.argv[1]) / 1000
for path in sys.argv[2:]:
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
    parser.add_argument("--apart", action="store_true", help="each shard as it is")
    parser.add_argument("--milliseconds", default="0", help="before each answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shards = _shards(options, Path(folder))
        command = [sys.executable, "-c", SERVER, options.milliseconds, *shards]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            try:
                _measure(shards, server.stdout.readline().strip(), options, Path(folder))
            finally:
                server.kill()


def _shards(options: argparse.Namespace, folder: Path) -> list[str]:
    from scorer.inputs.discover import find_shards

    paths = [shard.address for shard in find_shards(options.shards)]
    if options.apart:
        return paths
    joined = folder / "all.tfrecord"
    joined.write_bytes(b"".join(Path(path).read_bytes() for path in paths) * options.copies)
    return [str(joined)]


def _measure(shards: Sequence[str], url: str, options: argparse.Namespace, folder: Path) -> None:
    from scorer.model.find import open_model
    from scorer.model.model import Model

    keys = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    os.environ.update(keys, NO_PROXY="*")
    model, origin = open_model(options.model, lambda path: Model.open(path))
    print(f"{model.facts.path} ({origin}), {len(shards)} shards of {sum(map(os.path.getsize, shards)) / 1e6:.0f} MB")
    names = [Path(shard).name for shard in shards]
    places = {
        name: [f"{root}/{each}" for each in names] for name, root in (("http", f"{url}/bucket"), ("s3", "s3://bucket"))
    }
    places = {"disk": list(shards), **places}
    for name, action in (("score", lambda addresses: _score(addresses, model, folder)), ("read", _read)):
        found: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for _ in range(options.rounds):
            for place, addresses in places.items():
                found[place].append(action(addresses))
        for place, rounds in found.items():
            rates, cores = zip(*rounds, strict=True)
            ratios = [there / here for (there, _), (here, _) in zip(rounds, found["disk"], strict=True)]
            rate, ratio, core = map(statistics.median, (rates, ratios, cores))
            print(
                f"{name:5} {place:4} {rate:10,.0f} a second, {ratio:.3f} of the disk's; {core * 1e6:8.2f} us of cores"
            )


def _score(addresses: Sequence[str], model: Predictor, folder: Path) -> tuple[float, float]:
    """Videos a second, and seconds of cores a video."""
    from scorer.inputs.discover import find_shards
    from scorer.job.run import score
    from scorer.job.spec import Job
    from scorer.system.signals import StopRequest

    job = Job(find_shards(addresses), str(folder / "preds.csv"), resume_policy="restart")
    cores, began = time.process_time(), time.monotonic()
    report = score(job, model, StopRequest(), lambda progress: None)
    videos = report.record.scored
    return videos / (time.monotonic() - began), (time.process_time() - cores) / videos


def _read(addresses: Sequence[str]) -> tuple[float, float]:
    """MB a second, and seconds of cores a MB."""
    from scorer.inputs.discover import find_shards
    from scorer.inputs.readers import in_turn

    sources = find_shards(addresses)
    buffer = memoryview(bytearray(2 << 20))
    cores, began = time.process_time(), time.monotonic()
    for _, source, reader in in_turn(enumerate(sources)):
        with closing(reader):
            for offset in range(0, source.stat.size, len(buffer)):
                reader.read_into(offset, buffer)
            reader.check_unchanged()
    size = sum(source.stat.size for source in sources) / 1e6
    return size / (time.monotonic() - began), (time.process_time() - cores) / size


if __name__ == "__main__":
    main()
