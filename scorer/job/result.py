"""What came of a part of a job, in a form that can be sent and stored: 95 bytes a video, 150 with labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from scorer.errors import InputError
from scorer.inputs.batching import Quarantined
from scorer.inputs.position import Position
from scorer.job.record import Options, ShardRecord
from scorer.kernels import loops
from scorer.kernels.packed import PackedStrings, metric_record
from scorer.outputs.sink import Chunk
from scorer.outputs.typed import count_of, text_of

_FORMAT = 1
_LONGEST_HEADER = 1 << 28  # bytes, as of a journal's line


@dataclass(frozen=True)
class PartResult:
    """What came of a part. The shard indices within `chunk` count from the part's own first shard."""

    index: int
    count: int
    job: str
    options: Options
    shards: tuple[ShardRecord, ...]
    chunk: Chunk

    def to_bytes(self) -> bytes:
        """A line of JSON, then the arrays, then a CRC32C of it all; whatever the machine, the same bytes."""
        chunk = self.chunk
        quarantine, k = chunk.kept("quarantine"), chunk.labels.shape[1]
        sizes = [len(chunk), k, len(chunk.ids.data), len(chunk.metric_records), len(quarantine)]
        header = {
            "part": _FORMAT,
            "index": self.index,
            "count": self.count,
            "job": self.job,
            "options": self.options.to_json(),
            "shards": [shard.to_json() for shard in self.shards],
            "sizes": sizes,
            **({"unknown_labels": chunk.unknown_labels} if chunk.unknown_labels else {}),
        }
        arrays = chunk.ids.sizes.astype("<i4"), chunk.labels.astype("<i4"), chunk.scores.astype("<f4")
        data = b"".join(
            [
                json.dumps(header, separators=(",", ":")).encode() + b"\n",
                *(array.tobytes() for array in arrays),
                chunk.ids.data,
                chunk.metric_records,
                quarantine,
            ]
        )
        return data + loops.active.crc32c(data).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> PartResult:
        """What `to_bytes` made. Raises InputError for anything else."""
        try:
            return _parsed(data)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InputError(
                f"no result of a part, or a damaged one ({error})", remedy="run that part again"
            ) from error


def _parsed(data: bytes) -> PartResult:
    line, newline, _ = data[:_LONGEST_HEADER].partition(b"\n")
    if not newline or loops.active.crc32c(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise ValueError("its checksum differs")
    header = json.loads(line)
    if count_of(header["part"]) != _FORMAT:
        raise ValueError(f"it has format {header['part']!r}, and this version reads {_FORMAT}")
    index, count, *sizes = map(count_of, (header["index"], header["count"], *header["sizes"]))
    shards = tuple(map(ShardRecord.from_json, header["shards"]))
    options = Options.from_json(header["options"])
    unknown_labels = count_of(header.get("unknown_labels", 0))
    chunk = replace(_chunk(data[len(line) + 1 : -4], sizes, shards), unknown_labels=unknown_labels)
    _check_counts(index, count, options, shards, chunk)
    return PartResult(index, count, text_of(header["job"]), options, shards, chunk)


def _chunk(body: bytes, sizes: list[int], shards: tuple[ShardRecord, ...]) -> Chunk:
    videos, k, id_bytes, metric_bytes, quarantine_bytes = sizes
    lengths = [4 * videos, 4 * videos * k, 4 * videos * k, id_bytes, metric_bytes, quarantine_bytes]
    if sum(lengths) != len(body):
        raise ValueError("its sizes do not add up")
    ends = [*accumulate(lengths, initial=0)]
    id_sizes, labels, scores, ids, metric_records, quarantine = (body[i:j] for i, j in pairwise(ends))
    names = PackedStrings(ids, np.frombuffer(id_sizes, "<i4").astype(np.int64))
    if (names.sizes < 0).any() or names.sizes.sum() != id_bytes or metric_bytes % metric_record(k).itemsize:
        raise ValueError("its sizes do not add up")
    return Chunk(
        ids=names,
        labels=np.frombuffer(labels, "<i4").astype(np.int64).reshape(videos, k),
        scores=np.frombuffer(scores, "<f4").reshape(videos, k),
        metric_records=metric_records,
        quarantined=[_quarantined(json.loads(bad)) for bad in quarantine.splitlines()],
        end=Position(len(shards), 0, 0),
        finished=[(index, shard.records) for index, shard in enumerate(shards)],
    )


def _quarantined(value: Mapping[str, Any]) -> Quarantined:
    bad = Quarantined(**value)
    for text in (bad.path, bad.reason):
        text_of(text)
    for number in (bad.record, bad.offset, bad.bytes_lost):
        count_of(number)
    return bad


def _check_counts(index: int, count: int, options: Options, shards: tuple[ShardRecord, ...], chunk: Chunk) -> None:
    if index >= count or chunk.labels.shape[1] != options.top_k:
        raise ValueError("its numbers do not belong together")
    if sum(shard.records for shard in shards) != len(chunk) + len(chunk.quarantined):
        raise ValueError("it has other records than its shards")
