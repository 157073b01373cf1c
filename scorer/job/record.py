"""The completion record: what a finished job did, as it stands beside the output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scorer.inputs.source import FileStat
from scorer.outputs.typed import count_of, float_of, stat_of, text_of

_FORMAT = 1
_PLAIN_FORMAT = "pairs"
_PLAIN_LEVEL = "auto"
"""What is not stated: the rows' format, and the level of the records."""


@dataclass(frozen=True)
class OutputFacts:
    """A file that was written: the last part of its name, and size and CRC32C of all of it."""

    name: str
    bytes: int
    crc32c: int

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.bytes, "crc32c": f"{self.crc32c:08x}"}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OutputFacts:
        return cls(text_of(value["name"]), count_of(value["bytes"]), int(text_of(value["crc32c"]), 16))


@dataclass(frozen=True)
class Options:
    """What decides the bytes of the rows, and `on_error`. Batch size and threads do not.

    model_sha256: of the model's file. provider, runtime: the engine. top_k: labels a video. row_format: its name.
    on_error: "fail" or "skip". level: as scorer.inputs.records.Schema has it. threshold: least confidence that is
    written. names_sha256: see `digest_of_names`; empty where none are written.
    columns: FEATURE=COLUMN,... as they were given. embeddings: how wide those are that are written; 0 for none.
    """

    model_sha256: str
    provider: str
    runtime: str
    top_k: int
    on_error: str
    row_format: str = _PLAIN_FORMAT
    level: str = _PLAIN_LEVEL
    threshold: float = 0.0
    names_sha256: str = ""
    columns: str = ""
    embeddings: int = 0

    def key(self) -> dict[str, Any]:
        """What two runs of one job have in common: all but `on_error`."""
        stated = {
            **({} if self.row_format == _PLAIN_FORMAT else {"format": self.row_format}),
            **({} if self.level == _PLAIN_LEVEL else {"level": self.level}),
            **({"threshold": self.threshold} if self.threshold else {}),
            **({"names_sha256": self.names_sha256} if self.names_sha256 else {}),
            **({"columns": self.columns} if self.columns else {}),
            **({"embeddings": self.embeddings} if self.embeddings else {}),
        }
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
            model_sha256=text_of(value["model_sha256"]),
            provider=text_of(value["provider"]),
            runtime=text_of(value["runtime"]),
            top_k=count_of(value["top_k"]),
            on_error=text_of(value["on_error"]),
            row_format=text_of(value.get("format", _PLAIN_FORMAT)),
            level=text_of(value.get("level", _PLAIN_LEVEL)),
            threshold=float_of(value.get("threshold", 0.0)),
            names_sha256=text_of(value.get("names_sha256", "")),
            columns=text_of(value.get("columns", "")),
            embeddings=count_of(value.get("embeddings", 0)),
        )


def digest_of_names(names: Sequence[str] | None) -> str:
    """What tells the names of labels from others; empty for None."""
    return "" if names is None else hashlib.sha256(json.dumps([*names]).encode()).hexdigest()


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
        stat = stat_of(value["bytes"], value["mtime_ns"])
        return cls(text_of(value["path"]), stat, count_of(value["records"]))


@dataclass(frozen=True)
class CompletionRecord:
    """What a finished job did. Neither times nor anything else that a restart would change.

    scored, quarantined: records; read, their sum, is all there were. bytes_lost: with the quarantined ones.
    duplicates: rows whose id stands in an earlier row too. metrics: by name, empty where no labels were known.
    unknown_labels: true labels that the model does not know; stated where there are any.
    embeddings: the file of these, where one was asked for.
    """

    output: OutputFacts
    options: Options
    scored: int
    quarantined: int
    bytes_lost: int
    duplicates: int
    metrics: Mapping[str, float]
    shards: tuple[ShardRecord, ...]
    unknown_labels: int = 0
    embeddings: OutputFacts | None = None

    @property
    def read(self) -> int:
        return self.scored + self.quarantined

    def to_json(self) -> dict[str, Any]:
        """As it stands on disk."""
        return {
            "format": _FORMAT,
            "output": self.output.to_json(),
            **({} if self.embeddings is None else {"embeddings": self.embeddings.to_json()}),
            "options": self.options.to_json(),
            "read": self.read,
            "scored": self.scored,
            "quarantined": self.quarantined,
            "bytes_lost": self.bytes_lost,
            "duplicates": self.duplicates,
            **({"unknown_labels": self.unknown_labels} if self.unknown_labels else {}),
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
                scored=count_of(value["scored"]),
                quarantined=count_of(value["quarantined"]),
                bytes_lost=count_of(value["bytes_lost"]),
                duplicates=count_of(value["duplicates"]),
                metrics={text_of(name): float_of(metric) for name, metric in value["metrics"].items()},
                shards=tuple(ShardRecord.from_json(shard) for shard in value["shards"]),
                unknown_labels=count_of(value.get("unknown_labels", 0)),
                embeddings=OutputFacts.from_json(value["embeddings"]) if "embeddings" in value else None,
            )
            if (
                json.dumps(value) != json.dumps(record.to_json())
                or sum(shard.records for shard in record.shards) != record.read
            ):
                raise ValueError("its parts do not agree")
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a completion record: {error!r}") from error
        return record
