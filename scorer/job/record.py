"""The completion record: what a finished job did, as it stands beside the output."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scorer.inputs.source import FileStat

_FORMAT = 1
_PLAIN_FORMAT = "pairs"
"""The rows' format that is not stated."""


@dataclass(frozen=True)
class OutputFacts:
    """The output: the last part of its name, and size and CRC32C of all of it."""

    name: str
    bytes: int
    crc32c: int

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.bytes, "crc32c": f"{self.crc32c:08x}"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OutputFacts:
        return cls(_text(value["name"]), _count(value["bytes"]), int(_text(value["crc32c"]), 16))


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the rows, and `on_error`. Batch size, workers and threads do not.

    model_sha256: of the model's file. provider, runtime: the engine. top_k: labels a video. row_format: its name.
    on_error: "fail" or "skip".
    """

    model_sha256: str
    provider: str
    runtime: str
    top_k: int
    on_error: str
    row_format: str = _PLAIN_FORMAT

    def key(self) -> dict[str, Any]:
        """What two runs of one job have in common: all but `on_error`."""
        stated = {} if self.row_format == _PLAIN_FORMAT else {"format": self.row_format}
        return {
            "model_sha256": self.model_sha256,
            "provider": self.provider,
            "runtime": self.runtime,
            "top_k": self.top_k,
            **stated,
        }

    def to_json(self) -> dict[str, Any]:
        return {**self.key(), "on_error": self.on_error}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Options:
        return cls(
            model_sha256=_text(value["model_sha256"]),
            provider=_text(value["provider"]),
            runtime=_text(value["runtime"]),
            top_k=_count(value["top_k"]),
            on_error=_text(value["on_error"]),
            row_format=_text(value.get("format", _PLAIN_FORMAT)),
        )


@dataclass(frozen=True)
class ShardRecord:
    """A shard that was read to its end. canonical: its address. records: how many were read, bad ones included."""

    canonical: str
    stat: FileStat
    records: int

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.canonical,
            "bytes": self.stat.size,
            "mtime_ns": self.stat.version,
            "records": self.records,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ShardRecord:
        version = value["mtime_ns"]
        stat = FileStat(_count(value["bytes"]), version if isinstance(version, str) else _number(version))
        return cls(_text(value["path"]), stat, _count(value["records"]))


@dataclass(frozen=True)
class CompletionRecord:
    """What a finished job did. Neither times nor anything else that a restart would change.

    scored, quarantined: records; read, their sum, is all there were. bytes_lost: with the quarantined ones.
    duplicates: rows whose id stands in an earlier row too. metrics: by name, empty where no labels were known.
    """

    output: OutputFacts
    options: Options
    scored: int
    quarantined: int
    bytes_lost: int
    duplicates: int
    metrics: Mapping[str, float]
    shards: tuple[ShardRecord, ...]

    @property
    def read(self) -> int:
        return self.scored + self.quarantined

    def to_json(self) -> dict[str, Any]:
        """As it stands on disk."""
        return {
            "format": _FORMAT,
            "output": self.output.to_json(),
            "options": self.options.to_json(),
            "read": self.read,
            "scored": self.scored,
            "quarantined": self.quarantined,
            "bytes_lost": self.bytes_lost,
            "duplicates": self.duplicates,
            "metrics": dict(self.metrics),
            "shards": [shard.to_json() for shard in self.shards],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CompletionRecord:
        """What `to_json` made. Raises ValueError for anything else."""
        try:
            record = cls(
                output=OutputFacts.from_json(value["output"]),
                options=Options.from_json(value["options"]),
                scored=_count(value["scored"]),
                quarantined=_count(value["quarantined"]),
                bytes_lost=_count(value["bytes_lost"]),
                duplicates=_count(value["duplicates"]),
                metrics={_text(name): _float(metric) for name, metric in value["metrics"].items()},
                shards=tuple(ShardRecord.from_json(shard) for shard in value["shards"]),
            )
            if (
                json.dumps(value) != json.dumps(record.to_json())
                or sum(shard.records for shard in record.shards) != record.read
            ):
                raise ValueError("its parts do not agree")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a completion record: {error!r}") from error
        return record


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: object) -> int:
    if type(value) is not int:  # a bool is an int too
        raise TypeError(f"{value!r} is no whole number")
    return value


def _count(value: object) -> int:
    if (number := _number(value)) < 0:
        raise ValueError(f"{number} is less than none")
    return number


def _float(value: object) -> float:
    if not isinstance(value, float | int):
        raise TypeError(f"{value!r} is no number")
    return float(value)
