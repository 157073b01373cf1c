"""Settings of the command line over a recipe's own."""

from __future__ import annotations

import argparse
from dataclasses import fields, replace
from typing import Any

from scorer.errors import UsageError
from train.config import ModelConfig, Recipe, TrainConfig

_KINDS = {int: "a whole number", float: "a number"}


def overrides_of(options: argparse.Namespace) -> dict[str, Any]:
    """Field -> value as the command line gives them, text still as text."""
    values: dict[str, Any] = {}
    for pair in options.set:
        name, equals, value = pair.partition("=")
        if not equals or name in ("name", "inputs"):
            raise UsageError(f"--set {pair}: not FIELD=VALUE with a field of train/config.py")
        values[name] = value
    given = {"inputs": options.inputs and tuple(options.inputs), "epochs": options.epochs, "seed": options.seed}
    return values | {name: value for name, value in given.items() if value is not None}


def overridden(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """The recipe with the fields in `overrides` replaced. Raises UsageError for unknown fields and wrong values."""
    model, train = recipe
    known = {field.name: config for config in recipe for field in fields(config)}
    for name, value in overrides.items():
        if name not in known:
            raise UsageError(f"--set {name}: no such field", remedy=f"one of {', '.join(sorted(known))}")
        parsed = _parse(name, value, getattr(known[name], name))
        if known[name] is recipe[0]:
            model = replace(model, **{name: parsed})
        else:
            train = replace(train, **{name: parsed})
    return model, train


def _parse(name: str, value: Any, current: Any) -> Any:
    """`value`, where it is text, as the kind of thing that `current` is. Raises UsageError."""
    if not isinstance(value, str) or isinstance(current, str):
        return value
    if isinstance(current, bool):
        if value not in ("true", "false"):
            raise UsageError(f"--set {name}={value}: not true or false")
        return value == "true"
    try:
        return type(current)(value)
    except ValueError:
        raise UsageError(f"--set {name}={value}: not {_KINDS[type(current)]}") from None


def differences(old: ModelConfig | TrainConfig, new: ModelConfig | TrainConfig) -> list[str]:
    """The fields in which two configurations differ, as "name old -> new"."""
    pairs = ((field.name, getattr(old, field.name), getattr(new, field.name)) for field in fields(old))
    return [f"{name} {before} -> {after}" for name, before, after in pairs if before != after]
