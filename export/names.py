"""Label names out of YouTube-8M's vocabulary.csv."""

from __future__ import annotations

import csv
from pathlib import Path

from scorer.errors import InputError

_COLUMNS = {"Index", "Name", "KnowledgeGraphId"}


def read_names(path: Path, labels: int) -> list[str]:
    """The name of each of `labels` labels; its Knowledge Graph id where the file has no name for it.

    Raises InputError when the file is absent, is no such CSV, or names other labels than 0..labels-1.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            if not set(reader.fieldnames or ()) >= _COLUMNS:
                raise ValueError(f"no columns {', '.join(sorted(_COLUMNS))}")
            names = {int(row["Index"]): row["Name"] or row["KnowledgeGraphId"] for row in reader}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", remedy="check --vocabulary") from None
    except (ValueError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: not a vocabulary: {error}", remedy="give YouTube-8M's vocabulary.csv") from None
    if sorted(names) != list(range(labels)):
        raise InputError(f"{path}: {len(names)} labels, the model has {labels}", remedy="give the model's vocabulary")
    return [names[label] for label in range(labels)]
