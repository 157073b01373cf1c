"""`yt8m train --list-settings`: every setting with its defaults, unit and meaning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from scorer.system.tables import paragraph, terminal_width
from train.overrides import settings_of
from train.registry import spec

_INDENT = 4


def print_settings(models: Sequence[str]) -> None:
    """Print on standard output, for each setting, its default for each of `models` that reads it, unit and meaning."""
    width = terminal_width()
    print("settings, --set NAME=VALUE")
    for name, (values, about) in _settings(models).items():
        head = " ".join(filter(None, [name, _defaults(models, values), str(about["unit"])]))
        meaning = str(about["meaning"]) + (f" ({', '.join(about['choices'])})" if about["choices"] else "")
        lines = [*paragraph(head, width), *(" " * _INDENT + line for line in paragraph(meaning, width - _INDENT))]
        print("", *lines, sep="\n")


def _defaults(models: Sequence[str], values: Sequence[str]) -> str:
    """In brackets, as --help shows defaults: one for all models, or each model's that has one."""
    if len(set(values)) == 1:
        return f"[{values[0]}]"
    return "[" + ", ".join(f"{model} {value}" for model, value in zip(models, values, strict=True) if value) + "]"


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
