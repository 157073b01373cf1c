"""What came of a part of a job, in a form that can be sent and stored."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from scorer.errors import InputError
from scorer.inputs.position import Position
from scorer.job.chunks import MALFORMED, check_arrays, chunk_from_bytes, chunk_to_bytes, header_of
from scorer.job.record import Options, ShardRecord
from scorer.kernels import loops
from scorer.outputs.sink import Chunk
from scorer.outputs.typed import count_of, text_of

_FORMAT = 1


@dataclass(frozen=True)
class PartResult:
    """What came of a part. The shard indices within `chunk` count from the part's own first shard."""

    index: int
    count: int
    job: str
    options: Options
    shards: tuple[ShardRecord, ...]
    chunk: Chunk

    def chunks(self) -> Iterator[Chunk]:
        """All of it, in one."""
        yield self.chunk

    def to_bytes(self) -> bytes:
        """A line of JSON, then the chunk, then a CRC32C of it all; whatever the machine, the same bytes."""
        header = {
            "part": _FORMAT,
            "index": self.index,
            "count": self.count,
            "job": self.job,
            "options": self.options.to_json(),
            "shards": [shard.to_json() for shard in self.shards],
        }
        data = json.dumps(header, separators=(",", ":")).encode() + b"\n" + chunk_to_bytes(self.chunk)
        return data + loops.active.crc32c(data).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, data: bytes) -> PartResult:
        """What `to_bytes` made. Raises InputError for anything else."""
        try:
            return _parsed(data)
        except MALFORMED as error:
            raise InputError(
                f"no result of a part, or a damaged one ({error})", remedy="run that part again"
            ) from error


def _parsed(data: bytes) -> PartResult:
    content, crc = data[:-4], int.from_bytes(data[-4:], "little")
    if loops.active.crc32c(content) != crc:
        raise ValueError("its checksum differs")
    header, chunk = header_of(content)
    if count_of(header["part"]) != _FORMAT:
        raise ValueError(f"it has format {header['part']!r}, and this version reads {_FORMAT}")
    result = PartResult(
        index=count_of(header["index"]),
        count=count_of(header["count"]),
        job=text_of(header["job"]),
        options=Options.from_json(header["options"]),
        shards=tuple(map(ShardRecord.from_json, header["shards"])),
        chunk=chunk_from_bytes(chunk),
    )
    _check_counts(result)
    return result


def _check_counts(result: PartResult) -> None:
    shards, chunk = result.shards, result.chunk
    if result.index >= result.count:
        raise ValueError("its numbers do not belong together")
    check_arrays(chunk, result.options)
    finished = [(index, shard.records) for index, shard in enumerate(shards)]
    if chunk.end != Position(len(shards), 0, 0) or [*chunk.finished] != finished:
        raise ValueError("it has other shards than it says")
    if sum(shard.records for shard in shards) != len(chunk) + len(chunk.quarantined):
        raise ValueError("it has other records than its shards")
