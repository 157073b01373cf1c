"""Where a shard's bytes come from, and what tells whether they are still the same."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class FileStat:
    """What tells whether a shard is still the file it was: its size in bytes and its modification time in ns."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str) -> FileStat | None:
        """The stamp of the file at `path`; None where there is none to be had."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns)

    def __str__(self) -> str:
        return f"{self.size} bytes modified at {self.mtime_ns} ns"
