"""A chunk of predictions as bytes, to be sent and stored: 95 bytes a video, 150 with labels, and its embedding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scorer.inputs.batching import Quarantined
from scorer.inputs.position import Position
from scorer.job.record import Options
from scorer.kernels.packed import PackedStrings, metric_record
from scorer.outputs.sink import Chunk
from scorer.outputs.typed import count_of, text_of

_LONGEST_HEADER = 1 << 28  # bytes, as of a journal's line


def chunk_to_bytes(chunk: Chunk) -> bytes:
    """A line of JSON, then the arrays; whatever the machine, the same bytes."""
    quarantine, k = chunk.kept("quarantine"), chunk.labels.shape[1]
    header = {
        "sizes": [len(chunk), k, len(chunk.ids.data), len(chunk.metric_records), len(quarantine)],
        "end": [chunk.end.shard, chunk.end.record, chunk.end.offset],
        "finished": [[*shard] for shard in chunk.finished],
        **({"unknown_labels": chunk.unknown_labels} if chunk.unknown_labels else {}),
        **({} if chunk.embeddings is None else {"embeddings": chunk.embeddings.shape[1]}),
    }
    embeddings = () if chunk.embeddings is None else (chunk.embeddings.astype("<f4", copy=False),)
    arrays = chunk.ids.sizes.astype("<i4"), chunk.labels.astype("<i4"), chunk.scores.astype("<f4"), *embeddings
    return b"".join(
        [
            json.dumps(header, separators=(",", ":")).encode() + b"\n",
            *(array.tobytes() for array in arrays),
            chunk.ids.data,
            chunk.metric_records,
            quarantine,
        ]
    )


def chunk_from_bytes(data: bytes) -> Chunk:
    """What `chunk_to_bytes` made. For anything else one of `MALFORMED`."""
    header, body = header_of(data)
    videos, k, id_bytes, metric_bytes, quarantine_bytes = map(count_of, header["sizes"])
    width = count_of(header["embeddings"]) if "embeddings" in header else None
    arrays = [4 * videos, 4 * videos * k, 4 * videos * k, 4 * videos * (width or 0)]
    lengths = [*arrays, id_bytes, metric_bytes, quarantine_bytes]
    if sum(lengths) != len(body):
        raise ValueError("its sizes do not add up")
    ends = [*accumulate(lengths, initial=0)]
    id_sizes, labels, scores, embeddings, ids, metric_records, quarantine = (body[i:j] for i, j in pairwise(ends))
    names = PackedStrings(ids, np.frombuffer(id_sizes, "<i4").astype(np.int64))
    if (names.sizes < 0).any() or names.sizes.sum() != id_bytes or metric_bytes % metric_record(k).itemsize:
        raise ValueError("its sizes do not add up")
    _check_metrics(np.frombuffer(metric_records, metric_record(k)), videos)
    indices = np.frombuffer(labels, "<i4").astype(np.int64).reshape(videos, k)
    if indices.min(initial=0) < 0:
        raise ValueError("a label is less than none")
    return Chunk(
        ids=names,
        labels=indices,
        scores=np.frombuffer(scores, "<f4").reshape(videos, k),
        metric_records=metric_records,
        quarantined=[_quarantined(json.loads(bad)) for bad in quarantine.splitlines()],
        end=Position(*map(count_of, header["end"])),
        finished=[(count_of(index), count_of(records)) for index, records in header["finished"]],
        unknown_labels=count_of(header.get("unknown_labels", 0)),
        embeddings=None if width is None else np.frombuffer(embeddings, "<f4").reshape(videos, width),
    )


def header_of(data: bytes) -> tuple[Any, bytes]:
    """What stands in the first line, as JSON, and what follows it. Raises ValueError where there is none."""
    end = data.find(b"\n", 0, _LONGEST_HEADER)
    if end < 0:
        raise ValueError("it has no header")
    return json.loads(data[:end]), data[end + 1 :]


MALFORMED = (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError)
"""What comes of bytes that nobody here wrote."""


def _quarantined(value: Mapping[str, Any]) -> Quarantined:
    bad = Quarantined(**value)
    for text in (bad.path, bad.reason):
        text_of(text)
    for number in (bad.record, bad.offset, bad.bytes_lost):
        count_of(number)
    return bad


def _check_metrics(records: NDArray[np.void], videos: int) -> None:
    """Raise ValueError for what cannot be metric records of so many videos."""
    scores, hits = records["scores"], records["hits"].view(np.uint8)
    within = bool(((scores >= 0) & (scores <= 1)).all())
    if len(records) > videos or not within or records["positives"].min(initial=1) < 1 or hits.max(initial=0) > 1:
        raise ValueError("no such metric records")


def check_arrays(chunk: Chunk, options: Options) -> None:
    """Raise ValueError where a chunk has other labels or embeddings than a job with these options gives."""
    if chunk.labels.shape[1] != options.top_k:
        raise ValueError("a chunk has other labels")
    if len(chunk) and options.embeddings != (0 if chunk.embeddings is None else chunk.embeddings.shape[1]):
        raise ValueError("a chunk has other embeddings")
