"""An output in memory: what was appended, to be sent elsewhere."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import numpy as np

from scorer.inputs.position import BEGINNING
from scorer.inputs.source import FileStat
from scorer.kernels.packed import PackedStrings
from scorer.outputs.append import NO_BYTES, Extent
from scorer.outputs.sink import Chunk, Commit, Kept, joined_embeddings


class MemorySink:
    """A sink that keeps the predictions themselves. The attributes are those of `Sink`."""

    resumable = False
    embeddings = None
    quarantine_place = "in memory"

    def __init__(self, k: int) -> None:
        """For predictions of `k` labels a video."""
        self.last: Commit | None = None
        self.finished: list[tuple[FileStat, int]] = []
        self.completed: Mapping[str, Any] | None = None
        self._chunks: list[Chunk] = [_no_videos(k)]

    def append(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)

    def commit(self, commit: Commit) -> None:
        self.finished += commit.finished
        self.last = commit

    def kept(self, what: Kept) -> AbstractContextManager[BinaryIO]:
        """Nothing: it is all in the chunks."""
        return open(os.devnull, "rb")

    def seal(self) -> Extent:
        return NO_BYTES

    def complete(self, record: Mapping[str, Any]) -> None:
        self.completed = record

    def discard(self) -> None:
        self._chunks = self._chunks[:1]

    def joined(self) -> Chunk:
        """All that was appended, as one."""
        return join_chunks(self._chunks)


def join_chunks(chunks: Sequence[Chunk]) -> Chunk:
    """Some chunks, at least one, as one."""
    return Chunk(
        ids=PackedStrings(
            b"".join(chunk.ids.data for chunk in chunks), np.concatenate([chunk.ids.sizes for chunk in chunks])
        ),
        labels=np.concatenate([chunk.labels for chunk in chunks]),
        scores=np.concatenate([chunk.scores for chunk in chunks]),
        metric_records=b"".join(chunk.metric_records for chunk in chunks),
        quarantined=[bad for chunk in chunks for bad in chunk.quarantined],
        end=chunks[-1].end,
        finished=[shard for chunk in chunks for shard in chunk.finished],
        unknown_labels=sum(chunk.unknown_labels for chunk in chunks),
        embeddings=joined_embeddings([chunk.embeddings for chunk in chunks]),
    )


def _no_videos(k: int) -> Chunk:
    ids = PackedStrings(b"", np.empty(0, np.int64))
    return Chunk(ids, np.empty((0, k), np.int64), np.empty((0, k), np.float32), b"", [], BEGINNING, [])
