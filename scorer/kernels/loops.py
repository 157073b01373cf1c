"""`active`: the inner loops of this installation, compiled where possible and else in NumPy, with equal results.

They are not compiled where no C compiler was at hand when the package was installed, and on processors without an
instruction for CRC32C.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.kernels import numpy_loops
from scorer.kernels.packed import PackedStrings

Labels: TypeAlias = NDArray[np.int64]
Scores: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]


class Decode(Protocol):
    """Decodes whole records of a file from byte `offset` on into the rows first..last-1: those that start before byte
    `stop` and end before byte `end`.

    block: what the bytes of the file are read to. inputs: (name, width) of the features; features: float32 (n, width)
    of each. sizes: RowSizes.matrix of these n rows. A record that fails its CRC or is irregular is left out: its row is
    spoilt, its id of 0 bytes. Decoding ends early with the first bytes that hold such a one, with `enough` bytes of
    labels, and before what cannot be read or is not whole.

    Returns how many; their ids and their packed labels, joined; their bytes in the file; whether one that was not left
    out has `labels`; and, where some were left out, at which byte of the file the bytes in the block start.
    """

    def __call__(
        self,
        file: int,
        offset: int,
        stop: int,
        end: int,
        block: memoryview,
        inputs: tuple[tuple[bytes, int], ...],
        features: tuple[NDArray[np.float32], ...],
        first: int,
        last: int,
        sizes: Ints,
        enough: int,
        /,
    ) -> tuple[int, bytes, bytes, int, bool, int | None]: ...


File: TypeAlias = tuple[bytes, int, int, int]
"""Path, size in bytes, and the time of the last change, in seconds and nanoseconds beyond them: as they were when it
was found."""


class DecodeFiles(Protocol):
    """Decodes records of at most MAX_FILES files, one after the other, as `Decode` does: from byte `offset` of the
    first file on, up to those that start before byte `stop` of the last one.

    A file is read if it is still what was found, and starts with a regular record that has no frames beside it.
    Decoding ends where that is not so, before the first record that is irregular or fails its CRC, and where `Decode`
    ends early.

    Returns how many files were read to their ends, and by their paths were still so then; whether the next one was read
    to its end too, and is not; the records of each of these, and of the next one if there is one; the byte of that one
    where it ended; the ids and the labels, joined; and whether a record has `labels`.
    """

    def __call__(
        self,
        files: tuple[File, ...],
        offset: int,
        stop: int,
        block: memoryview,
        inputs: tuple[tuple[bytes, int], ...],
        features: tuple[NDArray[np.float32], ...],
        first: int,
        last: int,
        sizes: Ints,
        enough: int,
        /,
    ) -> tuple[int, bool, list[int], int, bytes, bytes, bool]: ...


FindRecord: TypeAlias = Callable[[tuple[File], int, int, memoryview], int]


class Loops(Protocol):
    """What both have. labels: int64 (n, k). scores: float32 (n, k). ValueError for sizes and shapes that do not fit."""

    @property
    def NAME(self) -> str:
        """Which set it is: "compiled" or "numpy"."""

    @property
    def decode(self) -> Decode | None:
        """None in NumPy, whose calls cost too much for one record: scorer.inputs.example takes a block at a time."""

    @property
    def decode_frames(self) -> Decode | None:
        """As `decode`, of frame-level records: the input mean_X is the mean of the list of frames X, of one string of
        bytes each. All other forms count as irregular. None in NumPy: scorer.inputs.frames takes one record at a time.
        """

    @property
    def decode_bare_frames(self) -> Decode | None:
        """As `decode_frames`; a record that has one of the inputs in its context counts as irregular too."""

    @property
    def decode_files(self) -> DecodeFiles | None:
        """None in NumPy, as `decode`."""

    @property
    def find_record(self) -> FindRecord | None:
        """Where the first record of a TFRecord file from one byte on and before another starts, by all appearances; -1
        where none does, and where the file is no such file or has changed. None in NumPy, as `decode`.
        """

    @property
    def find_header(self) -> Callable[[memoryview], int] | None:
        """Where the first 8 bytes lie that are followed by their CRC, as a record of a TFRecord file starts; -1 where
        none are. None in NumPy, as `decode`.
        """

    def check_predictions(self, labels: Labels, scores: Scores, label_count: int, /) -> int:
        """The first row with a label outside 0..label_count-1 or one that stands there twice, or with scores that are
        not in [0, 1] and descending; -1 if there is none.
        """

    def format_rows(self, ids: PackedStrings, labels: Labels, scores: Scores, /) -> bytes:
        """The rows of n videos as CSV: see scorer.outputs.formats. ValueError for a score that is not in [0, 1]."""

    def metric_records(self, labels: Labels, scores: Scores, truth: PackedStrings, /) -> bytes:
        """`metric_record(k)` of those of n videos that have true labels; truth: these, as packed varints."""

    def count_unknown(self, truth: PackedStrings, label_count: int, /) -> int:
        """How many of the true labels of some videos, packed varints, are none of 0..label_count-1."""

    def count_metrics(self, records: NDArray[np.void], up_to: Labels, first: Labels, histogram: Labels, /) -> int:
        """Add up n metric records in what scorer.evaluation.metrics.Metrics counts; returns their positives.

        ValueError for scores that are not in [0, 1].
        """

    def id_keys(self, ids: PackedStrings, /) -> bytes:
        """A uint64 for each id, little-endian, made of its first KEYED_ID_BYTES bytes, none of which is NUL."""

    def sum_frames(self, frames: memoryview, header: bytes, first: int, last: int, sums: NDArray[np.uint32], /) -> int:
        """Add the frames first..last-1, as far as there are some, to `sums`, (width,) and zeros before.

        frames: `header` and `width` bytes, over and over. Returns how many there are; -1 where they are anything else.
        """

    def crc32c(self, data: bytes | memoryview, crc: int = 0, /) -> int:
        """CRC32C (RFC 3720, B.4) of bytes whose predecessors' is `crc`."""


def _choose() -> tuple[Loops, str]:
    """The loops of this installation, and why they are not the compiled ones; empty where they are."""
    try:
        from scorer.kernels import compiled
    except ModuleNotFoundError:
        return numpy_loops, "no C compiler when it was installed"
    except ImportError as error:
        return numpy_loops, str(error)
    return compiled, ""


active, missing = _choose()
