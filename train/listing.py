"""`yt8m train --list-settings`: every setting with its defaults, unit and meaning."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from rich.console import Console
from rich.table import Table

from scorer.system.terminal import takes_escapes
from train.overrides import settings_of
from train.registry import spec


def print_settings(models: Sequence[str]) -> None:
    """Print a table on standard output: a setting a row, its default for each of `models` that reads it."""
    made = Table(title="settings, --set NAME=VALUE", title_justify="left")
    made.add_column("setting", no_wrap=True)
    for model in models:
        made.add_column(model, justify="right", no_wrap=True)
    made.add_column("unit")
    made.add_column("meaning", ratio=1)
    for name, (values, about) in _settings(models).items():
        meaning = str(about["meaning"]) + (f" ({', '.join(about['choices'])})" if about["choices"] else "")
        made.add_row(name, *values, str(about["unit"]), meaning)
    Console(width=None if sys.stdout.isatty() else 140, force_terminal=takes_escapes(sys.stdout)).print(made)


def _settings(models: Sequence[str]) -> dict[str, tuple[list[str], Any]]:
    """Setting -> its default for each model, "" where that does not read it; and what is known of it."""
    found: dict[str, tuple[list[str], Any]] = {}
    for column, model in enumerate(models):
        for config in spec(model).recipe:
            for field in fields(config):
                if field.name in settings_of(model) and field.metadata:
                    values, _ = found.setdefault(field.name, ([""] * len(models), field.metadata))
                    values[column] = _text(getattr(config, field.name))
    return found


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
