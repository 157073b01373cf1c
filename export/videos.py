"""The videos that a model is checked, calibrated and timed on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorer.errors import InputError
from scorer.inputs.batching import batches
from scorer.inputs.columns import NO_COLUMNS, check_columns
from scorer.inputs.records import Schema
from scorer.inputs.source import Source
from scorer.system.phases import At, nobody

Features = dict[str, NDArray[np.float32]]

_READ = 1024


@dataclass(frozen=True)
class VideoSample:
    """n videos. features: float32 (n, width) by name. labels: int64 CSR, values and splits. source: where from."""

    features: Features
    label_values: NDArray[np.int64]
    label_splits: NDArray[np.int64]
    source: str

    def __len__(self) -> int:
        return len(self.label_splits) - 1

    @property
    def labelled(self) -> int:
        """How many of them have at least one label."""
        return int((np.diff(self.label_splits) > 0).sum())

    def rows(self, chosen: NDArray[np.int64] | slice) -> Features:
        """The features of the videos at `chosen`."""
        return {name: values[chosen] for name, values in self.features.items()}


def read_videos(
    shards: Sequence[Source],
    inputs: Mapping[str, int],
    *,
    limit: int = 1 << 62,
    columns: Mapping[str, str] = NO_COLUMNS,
    at: At = nobody,
) -> VideoSample:
    """Decode the first `limit` videos of shards with the scorer's reader.

    columns: of Parquet and Arrow files, feature -> column, where its name is another.

    Raises InputError, ShardError or RecordError at the first fault, InputError too where there is no video at all,
    UsageError where a column is named for a feature that is none.
    """
    check_columns(columns, inputs)
    parts: list[Features] = []
    values, counts, read = [], [], 0
    row, size = 4 * sum(inputs.values()), max(1, sum(shard.stat.size for shard in shards))
    for batch in batches(shards, Schema(dict(inputs), columns=columns), min(_READ, limit)):
        take = min(len(batch), limit - read)
        parts.append({name: rows[:take].copy() for name, rows in batch.features.items()})
        splits = batch.label_splits[: take + 1]
        values.append(batch.label_values[: splits[-1]])
        counts.append(np.diff(splits))
        read += take
        at(min(1.0, read * row / size))
        batch.release()
        if read == limit:
            break
    if not read:
        raise InputError(f"{shards[0].address}: no videos", remedy="give shards that hold some")
    features = {name: np.concatenate([part[name] for part in parts]) for name in inputs}
    splits = np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)
    return VideoSample(features, np.concatenate(values), splits, f"{read} videos of {len(shards)} shards")


def random_videos(inputs: Mapping[str, int], count: int) -> VideoSample:
    """Stand-ins where no shard is at hand: normal features of YouTube-8M's deviation, the same every time."""
    random = np.random.default_rng(0)
    features = {name: random.normal(0, 0.5, (count, width)).astype(np.float32) for name, width in inputs.items()}
    empty = np.zeros(0, np.int64)
    return VideoSample(features, empty, np.zeros(count + 1, np.int64), f"{count} random vectors")
