"""A second record format, as one file: JSON lines, {"id": "...", "labels": [...], "mean_rgb": [...], ...}."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.errors import RecordError, ShardError
from scorer.inputs.position import Position
from scorer.inputs.readers import register_format
from scorer.inputs.records import DecodedBlock, Faults, Opener, Schema, decode_nothing
from scorer.inputs.source import Reader, Source
from scorer.kernels.packed import PackedStrings

BLOCK_RECORDS = 5


class ToyLines:
    def recognises(self, head: bytes) -> bool:
        return head.startswith(b'{"id"')

    def opener(self, schema: Schema) -> Opener:
        return lambda source, reader: JsonReader(schema.inputs, source, reader)


class JsonReader:
    decode_into, find_record = staticmethod(decode_nothing), None

    def __init__(self, inputs: Mapping[str, int], source: Source, reader: Reader) -> None:
        self._inputs, self._source, self._reader = inputs, source, reader
        self.check_unchanged, self.close, self.size = reader.check_unchanged, reader.close, source.stat.size

    def block(self, position: Position) -> DecodedBlock:
        content = memoryview(bytearray(self._source.stat.size - position.offset))
        self._reader.read_into(position.offset, content)
        lines = bytes(content).splitlines(keepends=True)[:BLOCK_RECORDS]
        bounds = np.cumsum([0, *map(len, lines)])
        last = int(bounds[-1]) == len(content)
        if last:
            self.check_unchanged()
        bad: Faults = {}
        for row, line in enumerate(lines):
            if not line.endswith(b"}\n"):
                offset = position.offset + int(bounds[row])
                bad[row] = RecordError(self._source.address, "no JSON", record=position.record + row, offset=offset)
        records = [{} if row in bad else json.loads(line) for row, line in enumerate(lines)]
        rows = JsonRows(records, bad, self._inputs)
        return DecodedBlock(
            position.shard, self._source.stat.size, position.record, position.offset, bounds, last, None, rows
        )


class JsonRows:
    def __init__(self, records: list[dict[str, Any]], bad: Faults, inputs: Mapping[str, int]) -> None:
        labels = PackedStrings.of([bytes(record.get("labels", [])) for record in records])
        self.ids = [record.get("id", "").encode() for record in records]
        self.labels, self.label_sizes = np.frombuffer(labels.data, np.uint8), labels.sizes
        self.labelled = np.array(["labels" in record for record in records], bool)
        self.bad, self.label_faults = bad, dict[int, ShardError | RecordError]()
        self._features = [[record.get(name, [0] * width) for record in records] for name, width in inputs.items()]

    def copy(self, first: int, last: int, rows: Sequence[NDArray[np.float32]]) -> bool:
        for values, to in zip(self._features, rows, strict=True):
            to[...] = values[first:last]
        return True


def register() -> None:
    """What a package would do as it is imported; shards of tf.Examples are decoded in another way from then on."""
    register_format(ToyLines())
