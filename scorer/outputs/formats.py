"""The forms of the rows by name, and which one a file's name asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TypeAlias

from scorer.errors import UsageError
from scorer.kernels.packed import PackedStrings
from scorer.outputs.compression import COMPRESSIONS, packing_with
from scorer.outputs.csv_rows import LabelsOnly, Pairs
from scorer.outputs.json_lines import JsonLines
from scorer.outputs.paths import STANDARD_OUTPUT
from scorer.outputs.row_format import PLAIN, Labels, Pack, RowFormat, RowOptions, Scores

Maker: TypeAlias = Callable[[RowOptions], RowFormat]
"""Makes a format. Raises UsageError where it cannot do what the options ask for, or needs a package that is absent."""

DEFAULT = "pairs"
_EXTENSIONS: Mapping[str, tuple[str, ...]] = {
    "csv": ("pairs", "labels"),
    "jsonl": ("jsonl",),
    "ndjson": ("jsonl",),
    "parquet": ("parquet",),
}
"""Which formats a file of that name may have, the first where none is asked for."""


def _parquet(options: RowOptions) -> RowFormat:
    from scorer.outputs.parquet import Parquet  # seldom needed

    return Parquet(options)


_formats: dict[str, Maker] = {"pairs": Pairs, "labels": LabelsOnly, "jsonl": JsonLines, "parquet": _parquet}


def register_format(name: str, maker: Maker) -> None:
    """Have outputs of the format with this name, which completion records state, written by what `maker` makes."""
    _formats[name] = maker


def make_format(name: str, options: RowOptions = PLAIN) -> RowFormat:
    """The format of that name, such as "jsonl", or "jsonl.gz" where it is compressed.

    Raises UsageError: there is no such format, or as `Maker` has it.
    """
    plain, _, compression = name.partition(".")
    if plain not in _formats or compression not in ("", *COMPRESSIONS):
        raise UsageError(f"there is no format {name!r}", remedy=f"choose one of {', '.join(sorted(_formats))}")
    made = _formats[plain](options)
    if compression and made.pack is not None:
        raise UsageError(f"{plain} is compressed within", remedy=f"leave .{compression} out")
    return _CompressedRows(made, packing_with(COMPRESSIONS[compression]())) if compression else made


def check_format(name: str, *, names: bool) -> None:
    """Say at once what is wrong with a format, with names of labels or without. Raises UsageError."""
    make_format(name, RowOptions(names=[""] if names else None))


def format_of(output: str, asked: str | None = None) -> str:
    """The name of the format that an output of this name is to have, its compression with it.

    asked: the format without compression, where one was asked for.

    Standard output, and a name without an extension, take any, and the default where none is asked for.

    Raises UsageError: an extension that is not known, where no format is asked for, or one of another format.
    """
    if output == STANDARD_OUTPUT:
        return asked or DEFAULT
    *_, extension = ["", *PurePath(output).suffixes]
    compression = extension[1:].lower()
    if compression in COMPRESSIONS:
        extension = PurePath(output.removesuffix(extension)).suffix
    else:
        compression = ""
    name = _of_extension(output, extension[1:].lower(), asked)
    return f"{name}.{compression}" if compression else name


def check_name(output: str, row_format: str) -> None:
    """Raise UsageError where the name of an output says another format than its rows are to have."""
    plain, _, _ = row_format.partition(".")
    if output != STANDARD_OUTPUT and format_of(output, plain) != row_format:
        raise UsageError(f"{output} is to be {row_format}, and its name does not say so", remedy="name it otherwise")


def _of_extension(output: str, extension: str, asked: str | None) -> str:
    if not extension:
        return asked or DEFAULT
    formats = _EXTENSIONS.get(extension, ())
    if asked is None and not formats:
        known = ", ".join(f".{known}" for known in _EXTENSIONS)
        ends = " or ".join(f".{end}" for end in COMPRESSIONS)
        raise UsageError(f"{output}: there is no format of .{extension}", remedy=f"name it {known}, with {ends} or not")
    if asked and formats and asked not in formats:
        raise UsageError(f"{output} is to be {asked}, and its name says {formats[0]}", remedy="name it otherwise")
    return asked or formats[0]


@dataclass(frozen=True)
class _CompressedRows:
    """The rows of another format, compressed in the end."""

    inner: RowFormat
    pack: Pack

    @property
    def header(self) -> bytes:
        return self.inner.header

    def rows(self, ids: PackedStrings, labels: Labels, scores: Scores) -> bytes:
        return self.inner.rows(ids, labels, scores)
