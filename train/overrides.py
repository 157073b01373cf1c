"""Settings of the command line over a recipe's own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from scorer.errors import UsageError
from train.config import ModelConfig, Recipe, TrainConfig
from train.registry import names, spec

Overrides = dict[str, Any]
"""Setting -> value as the command line gives it, text still as text."""

_KINDS = {int: "a whole number", float: "a number"}
_LIST = "`yt8m train --list-settings` lists them"


def overrides_of(options: argparse.Namespace) -> Overrides:
    """What --set and the options that stand for a setting say. Raises UsageError, for a setting given twice too."""
    values: Overrides = {}
    for pair in options.set:
        name, equals, value = pair.partition("=")
        if not equals or name in ("name", "inputs"):
            raise UsageError(f"--set {pair}: not SETTING=VALUE", remedy=_LIST)
        if name in values:
            raise UsageError(f"--set {name}={values[name]} and --set {name}={value}", remedy="give it once")
        values[name] = value
    given = {"inputs": options.inputs and tuple(options.inputs), "epochs": options.epochs, "seed": options.seed}
    for name, value in given.items():
        if value is not None and name in values:
            raise UsageError(f"--set {name}={values[name]} and --{name} {value}", remedy="give one of the two")
        if value is not None:
            values[name] = value
    return values


def check_settings(overrides: Overrides, models: Sequence[str]) -> None:
    """Raise UsageError for a setting that does not exist, or that none of `models` reads."""
    readers = {name: [model for model in names() if name in settings_of(model)] for name in overrides}
    for name, found in readers.items():
        if not found:
            near = get_close_matches(name, {each for model in names() for each in settings_of(model)}, 1)
            reason = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"--set {name}: there is no such setting{reason}", remedy=_LIST)
        if not set(found) & set(models):
            raise UsageError(
                f"--set {name}: {', '.join(models)} would not read it, {', '.join(found)} would", remedy=_LIST
            )


def settings_of(model: str) -> tuple[str, ...]:
    """The names of what can be set for a model."""
    return ("inputs", *spec(model).settings, *(field.name for field in fields(TrainConfig)))


def overridden(recipe: Recipe, overrides: Overrides) -> Recipe:
    """The recipe with those fields in `overrides` replaced that its model reads. Raises UsageError for wrong values."""
    model, train = recipe
    for name, value in overrides.items():
        if name not in settings_of(model.name):
            continue
        if hasattr(model, name):
            model = replace(model, **{name: _parse(name, value, getattr(model, name))})
        else:
            train = replace(train, **{name: _parse(name, value, getattr(train, name))})
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
