"""TFRecord files: compressed ones that break off or expand without end, and records of examples and of frames."""

from __future__ import annotations

import gzip
import zlib
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from scorer.inputs.batching import batches
from scorer.inputs.records import Level, Schema
from tests import shards
from tests.fuzz.readers.harness import FuzzedReader
from tests.fuzz.readers.mutations import NUMBERS, changed_bytes
from tests.loops import HERE, using

_INPUTS = {"mean_rgb": 6, "mean_audio": 2}
_MIB = 128


def _read(path: Path, data: bytes, level: Level, loops: str) -> bytes:
    """All that was found, good and bad."""
    path.write_bytes(data)
    found = sha256()
    with using(loops):
        for batch in batches(shards.sources([str(path)]), Schema(_INPUTS, level), 64, on_error="skip"):
            labels = batch.label_values.tolist(), batch.label_splits.tolist(), batch.labelled_rows.tolist()
            found.update(repr((batch.ids, labels, batch.quarantined, batch.label_faults, batch.finished)).encode())
            for values in batch.features.values():
                assert np.isfinite(values[: len(batch)]).all()
                found.update(values[: len(batch)].tobytes())
            for id in batch.ids:
                assert id.decode().isprintable() or id.decode() > "\x7f"
            batch.release()
    return found.digest()


def make_compressed(folder: Path) -> FuzzedReader:
    """gzip and zlib, cut, changed and repeated; and 64 MiB of zeros out of a few KiB."""
    good = b"".join(map(shards.frame, _examples(30)))
    bombs = [b"\0" * (64 << 20), shards.frame(b"") * (1 << 15), good[:40] + b"\0" * (64 << 20)]
    originals = [gzip.compress(good), zlib.compress(good), gzip.compress(good, 0), gzip.compress(good[:500]) * 3]
    packed = [zlib.compress(bomb, 9) for bomb in bombs]

    def make(random: Random) -> bytes:
        if random.random() < 0.02:
            return random.choice(packed)
        if random.random() < 0.1:
            return gzip.compress(changed_bytes(random, good))
        return changed_bytes(random, random.choice(originals), originals)

    return FuzzedReader(make, lambda data: _read(folder / "shard", data, "auto", HERE[len(data) % len(HERE)]), _MIB)


def make_example(folder: Path) -> FuzzedReader:
    """Payloads under right checksums, compiled and in NumPy; both must find the same."""
    originals = _examples(6)

    def make(random: Random) -> bytes:
        return _shard(random, originals)

    def read(data: bytes) -> None:
        found = {_read(folder / "shard", data, "auto", loops) for loops in HERE}
        assert len(found) == 1, found

    return FuzzedReader(make, read, _MIB)


def make_frames(folder: Path) -> FuzzedReader:
    """As frames, as segments, and as what the reader takes them for; with checksums and without any."""
    originals = _sequences()
    levels: tuple[Level, ...] = ("auto", "frame", "segment", "video")

    def make(random: Random) -> bytes:
        level = random.randrange(len(levels))
        bare = random.random() < 0.2
        data = changed_bytes(random, random.choice(originals), originals) if bare else _shard(random, originals)
        return bytes([level]) + data

    def read(data: bytes) -> None:
        found = {_read(folder / "x.pb", data[1:], levels[data[0]], loops) for loops in HERE}
        assert len(found) == 1, found

    return FuzzedReader(make, read, _MIB)


def _shard(random: Random, originals: list[bytes]) -> bytes:
    """Five good records and some changed ones; now and then a length that is forged under a right checksum."""
    payloads = originals[:5] + [
        changed_bytes(random, random.choice(originals), originals) for _ in range(random.choice((1, 3)))
    ]
    random.shuffle(payloads)
    data = b"".join(map(shards.frame, payloads))
    if random.random() < 0.1:
        length = random.choice(NUMBERS).to_bytes(8, "little")
        data += length + shards.masked_crc(length).to_bytes(4, "little") + originals[0]
    return data


def _examples(count: int) -> list[bytes]:
    random = np.random.default_rng(0)
    return [
        shards.example(
            f"é{row}" if row % 4 == 3 else f"v{row}",
            [row, 300 * row] if row % 3 else None,
            {name: random.normal(size=width).astype(np.float32) for name, width in _INPUTS.items()},
            id_key="video_id" if row % 5 == 4 else "id",
        )
        for row in range(count)
    ]


def _sequences() -> list[bytes]:
    random = np.random.default_rng(0)

    def frames(count: int, *, floats: bool = False) -> dict[str, Any]:
        if floats:
            return {
                f"{name[5:].upper()}/feature/floats": random.normal(size=(count, width)).astype(np.float32)
                for name, width in _INPUTS.items()
            }
        return {name[5:]: random.integers(0, 256, (count, width), np.uint8) for name, width in _INPUTS.items()}

    times = [shards.entry("segment_start_times", shards.int64_feature([0, 5]))]
    times += [shards.entry("segment_end_times", shards.int64_feature([5, 10]))]
    times += [shards.entry("segment_labels", shards.int64_feature([1, 2]))]
    times += [shards.entry("segment_scores", shards.float_feature([1.0, 0.0]))]
    return [
        shards.sequence_example("v0", [1], frames(4)),
        shards.sequence_example("v1", [1, 2], frames(12), times),
        shards.sequence_example("v2", None, frames(3, floats=True)),
        shards.sequence_example(None, None, frames(2, floats=True)),
        shards.sequence_example("v3", [5], frames(1), _means()),
        shards.sequence_example("v4", [5], frames(300)),
    ]


def _means() -> list[bytes]:
    return [shards.entry(name, shards.float_feature([0.5] * width)) for name, width in _INPUTS.items()]
