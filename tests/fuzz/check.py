"""What must hold for any bytes: no exception but the scorer's own, and no row that protobuf would not give."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Sequence
from itertools import accumulate
from unittest import mock

import numpy as np

from scorer.inputs import example_reader, tfrecord
from scorer.inputs.batching import Batch, Quarantined, batches
from scorer.inputs.example import Decoder, Records
from scorer.inputs.position import Position
from scorer.inputs.records import Schema, Target
from scorer.inputs.source import LocalFile
from scorer.inputs.tfrecord import Block, FramedBlock, Shard
from scorer.kernels.packed import PackedStrings, RowSizes, unpack_varints
from tests import shards
from tests.scorer.inputs import reference
from tests.scorer.inputs.reference import Video

SCHEMA = Schema({"rgb": 3, "audio": 2})
BLOCK = Block()
GOOD = [
    shards.example("id0", [1, 300], {"rgb": [1, -0.0, 3e-45], "audio": [0.5, -7]}),
    shards.example("id1", None, {"audio": [1, 2], "rgb": [1, 2, 3], "more": [4]}) + b"\x12\x00",
    shards.example("id2", [], {"rgb": [7, 8, 9], "audio": [1, 2]}, id_key="video_id"),
]


def frames_of(payloads: Sequence[bytes]) -> FramedBlock:
    """A block of these records, as Shard would find them."""
    places = np.array([0, *accumulate(len(payload) + 16 for payload in payloads)])
    with mock.patch.object(tfrecord, "BLOCK_BYTES", places[-1]):
        block = Block()
    block.view[: places[-1]] = b"".join(map(shards.frame, payloads))
    return FramedBlock(block, 0, 0, places, last=True)


def videos(records: Records, schema: Schema = SCHEMA) -> list[Video | None]:
    """What was decoded, in the reference's form; None for bad records."""
    values, splits = unpack_varints(PackedStrings(records.labels.tobytes(), records.label_sizes))
    found: list[Video | None] = []
    for row, id in enumerate(records.ids):
        rows = [np.full((1, width), np.nan, np.float32) for width in schema.inputs.values()]
        if row in records.bad or not records.copy(row, row + 1, rows):
            found.append(None)
            continue
        labels = tuple(values[splits[row] : splits[row + 1]].tolist())
        assert records.labelled[row] or not labels
        floats = tuple(floats.tobytes() for floats in rows)
        found.append(Video(floats, id, labels if records.labelled[row] else None))
    return found


def agree(payloads: Sequence[bytes], schema: Schema = SCHEMA) -> list[Video | None]:
    """Decode twice, as unknown and as known layouts, and compare with protobuf; returns what was decoded."""
    expected = [reference.decode(payload, schema.inputs) for payload in payloads]
    decoder = Decoder(schema)
    for _ in range(2):
        assert videos(decoder.decode("x", frames_of(payloads)), schema) == expected
    if native := example_reader.native_decoder(schema):
        assert compiled(payloads, schema, native) == expected
    return expected


def compiled(payloads: Sequence[bytes], schema: Schema, decoder: example_reader.NativeDecoder) -> list[Video | None]:
    """What the compiled loops, and protobuf for what they leave out, make of these records."""
    features = [np.empty((len(payloads), width), np.float32) for width in schema.inputs.values()]
    sizes, place = RowSizes(len(payloads)), Position(0, 0, 0)
    ids, labels = b"", b""
    bad: set[int] = set()
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"".join(map(shards.frame, payloads)))
        file.flush()
        with Shard(LocalFile.at(file.name), BLOCK) as shard:
            while place.record < len(payloads):
                target = Target(features, sizes, place.record, len(payloads), 1, shard.size)
                run = decoder.decode(shard, place, target)
                assert run.records
                ids, labels = ids + run.ids, labels + run.labels
                bad |= {place.record + row for row in run.bad}
                place = Position(0, place.record + run.records, place.offset + run.size)
            assert place.offset == shard.size
    values, splits = unpack_varints(PackedStrings(labels, sizes.labels))
    return [
        None
        if row in bad
        else Video(
            tuple(rows[row].tobytes() for rows in features),
            id,
            tuple(values[splits[row] : splits[row + 1]].tolist()) if sizes.labelled[row] else None,
        )
        for row, id in enumerate(PackedStrings(ids, sizes.ids).split())
    ]


def read(path: str, schema: Schema = SCHEMA) -> tuple[list[Video], list[Quarantined]]:
    """All videos of a shard, labels absent as empty, and what was quarantined. Checks that both add up."""
    found, quarantined, count = [], [], 0
    for batch in batches([LocalFile.at(path)], schema, 7, on_error="skip"):
        found += _rows(batch)
        quarantined += batch.quarantined
        count += sum(read for _, read in batch.finished)
        batch.release()
    assert count == len(found) + len(quarantined)
    return found, quarantined


def _rows(batch: Batch) -> list[Video]:
    values, splits = batch.label_values.tolist(), batch.label_splits.tolist()
    floats = [tuple(rows[i].tobytes() for rows in batch.features.values()) for i in range(len(batch))]
    return [Video(floats[i], id, tuple(values[splits[i] : splits[i + 1]])) for i, id in enumerate(batch.ids)]


def records_of(shard: bytes) -> list[bytes]:
    """The payloads whose CRCs are right, up to the first length that is not: framing in the plainest words."""
    found, place = [], 0
    while place + 12 <= len(shard):
        length, check = struct.unpack_from("<QI", shard, place)
        payload = shard[place + 12 : place + 12 + length]
        stored = shard[place + 12 + length : place + 16 + length]
        if check != shards.masked_crc(shard[place : place + 8]) or len(stored) < 4:
            break
        if struct.unpack("<I", stored)[0] == shards.masked_crc(payload):
            found.append(payload)
        place += length + 16
    return found


def agree_on_shard(shard: bytes, path: str, schema: Schema = SCHEMA) -> tuple[list[Video], list[Quarantined]]:
    """Read a shard of any bytes and compare with plain framing and protobuf; returns what `read` does."""
    with open(path, "wb") as file:
        file.write(shard)
    decoded = [reference.decode(payload, schema.inputs) for payload in records_of(shard)]
    expected = [video._replace(labels=video.labels or ()) for video in decoded if video]
    found = read(path, schema)
    assert found[0] == expected
    return found
