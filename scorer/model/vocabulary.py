"""Names of labels out of a CSV file (docs/formats.md): YouTube-8M's vocabulary.csv, 2017's label_names.csv, or one of
your own with the columns Index and Name."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from scorer.errors import InputError

_INDEX, _NAME, _ID = ("index", "label_id"), ("name", "label_name"), ("knowledgegraphid",)
"""What a column may be called, in small letters."""


def read_vocabulary(path: Path, labels: int | None = None) -> list[str]:
    """The name of each label; where the file has none for it, its Knowledge Graph id, and without that its number.

    labels: how many there have to be; any number by default.

    Raises InputError when the file is absent, is no such CSV, or does not name each of the labels 0, 1, ... once.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin files with a byte-order mark
            rows = _read(csv.DictReader(file))
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, csv.Error) as error:
        reason = f"{path}: not a vocabulary: {error}"
        raise InputError(reason, remedy="give YouTube-8M's vocabulary.csv, or columns Index and Name") from None
    if labels is not None and len(rows) != labels:
        raise InputError(f"{path}: {len(rows)} labels, the model has {labels}", remedy="give the model's vocabulary")
    names = dict(rows)
    for label in range(len(rows)):
        if label not in names:
            raise InputError(f"{path}: no label {label} among {len(rows)}", remedy="number them 0, 1, 2, ...")
    return [names[label] for label in range(len(rows))]


def _read(reader: csv.DictReader[str]) -> list[tuple[int, str]]:
    """Number and name in each row. Raises ValueError or TypeError."""
    reader.fieldnames = header = [column.strip().lower() for column in reader.fieldnames or ()]
    index, name, other = (_find(header, columns) for columns in (_INDEX, _NAME, _ID))
    if not index or not name:
        raise ValueError("its first line has no columns Index and Name")
    rows = [(int(row[index]), row[name] or row.get(other) or row[index]) for row in reader]
    if not rows:
        raise ValueError("it names no label")
    return rows


def _find(header: Sequence[str], columns: Sequence[str]) -> str:
    """Which of `columns` is in `header`; "" for none."""
    return next((column for column in columns if column in header), "")
