"""What a store of objects does for the scorer, whoever keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Protocol

from scorer.inputs.source import FileStat

MAGIC = re.compile(r"[*?[]")


class TransientError(OSError):
    """What may go well when asked once more. In general, an OSError is for good, FileNotFoundError and PermissionError
    say why.
    """


class Store(Protocol):
    """Every method raises OSError, TransientError among them."""

    def stat(self, url: str) -> FileStat: ...

    def read(self, url: str, start: int, stop: int) -> AbstractContextManager[tuple[FileStat, Iterable[bytes]]]:
        """The stat of what is read, and its bytes `start` to `stop` - 1, piece by piece."""

    def find(self, url: str) -> Iterable[tuple[str, FileStat]]:
        """The objects that `url` stands for, by name: itself, what a pattern matches, the shards of a folder.

        FileNotFoundError where there is neither; none in a folder without shards.
        """
