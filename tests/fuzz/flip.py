"""Every truncation and every flipped bit of a small shard, and what became of it.

python -m tests.fuzz.flip           three records in the layout of YouTube-8M (a minute or two), with a tally
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from scorer.inputs import tfrecord
from scorer.inputs.records import Schema
from tests import shards
from tests.fuzz import check
from tests.loops import HERE, using

SMALL = Schema({"mean_rgb": 128, "mean_audio": 16})


def truncations(shard: bytes, step: int = 1) -> Iterator[bytes]:
    for size in range(0, len(shard), step):
        yield shard[:size]


def flips(shard: bytes, step: int = 1) -> Iterator[bytes]:
    for at in range(0, 8 * len(shard), step):
        changed = bytearray(shard)
        changed[at // 8] ^= 1 << at % 8
        yield bytes(changed)


def tally_shard(payloads: Sequence[bytes], schema: Schema, path: str, step: int = 1) -> Counter[str]:
    """Damage the file. Whatever happens, only whole rows of the original may come out, in order.

    step: 1 for every byte and bit, more for a sample of them.
    """
    shard = b"".join(map(shards.frame, payloads))
    whole = check.agree_on_shard(shard, path, schema)[0]
    tally: Counter[str] = Counter()
    for kind, changes in (("truncated", truncations(shard, step)), ("flipped", flips(shard, step))):
        for changed in changes:
            found, quarantined = check.agree_on_shard(changed, path, schema)
            assert all(video in whole for video in found)
            assert len(found) < len(whole)
            reason = quarantined[0].reason.split(":")[0].split(",")[0] if quarantined else "cut between records"
            tally[f"{kind}: {reason}"] += 1
    return tally


def tally_payloads(payloads: Sequence[bytes], schema: Schema, step: int = 1) -> Counter[str]:
    """Damage payloads under right CRCs, as a faulty writer would: protobuf says what is to come out."""
    tally: Counter[str] = Counter()
    for payload in payloads:
        for kind, changes in (("truncated", truncations(payload, step)), ("flipped", flips(payload, step))):
            for changed in changes:
                same, video, again = check.agree([payload, changed, payload], schema)
                assert same == again
                outcome = "quarantined" if video is None else "another value" if video != same else "the same video"
                tally[f"under a right CRC, {kind}: {outcome}"] += 1
    return tally


def small_shard() -> list[bytes]:
    """Three records of random numbers in the layout of YouTube-8M, an eighth as wide."""
    random = np.random.default_rng(1)
    features = [
        {name: random.normal(size=width).astype(np.float32) for name, width in SMALL.inputs.items()} for _ in range(3)
    ]
    return [shards.example(f"vid{i}", [i, 300 + i], values) + b"\x12\x00" for i, values in enumerate(features)]


def main() -> None:
    tfrecord.BLOCK_BYTES = 1 << 15  # made again for every change, a block of the usual size would take most of the time
    for loops in HERE:
        with using(loops), tempfile.TemporaryDirectory() as folder:
            tally = tally_shard(small_shard(), SMALL, str(Path(folder, "x.tfrecord")))
            tally += tally_payloads(check.GOOD, check.SCHEMA)
        for outcome, count in sorted(tally.items()):
            print(f"{count:9,} {outcome}")
        print(f"{tally.total():9,} in all with the {loops} loops; no wrong row and no traceback")


if __name__ == "__main__":
    main()
