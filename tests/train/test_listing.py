"""`--list-settings`: every setting, what it is by default for each model that reads it, and what it means."""

from __future__ import annotations

from dataclasses import fields

import pytest

from train.cli import main
from train.overrides import settings_of
from train.registry import names, spec


@pytest.mark.parametrize("model", names())
def test_every_setting_has_a_meaning(model: str) -> None:
    settings = {field.name: field.metadata for config in spec(model).recipe for field in fields(config)}
    for name in settings_of(model):
        assert name == "inputs" or settings[name]["meaning"]


def test_every_setting_is_listed_with_its_default_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-settings"]) == 0
    shown = capsys.readouterr().out
    for name in {name for model in names() for name in settings_of(model)} - {"inputs"}:
        assert f"\n{name} [" in shown
    assert "\nhidden [lstm 1024, bilstm 1024] units\n" in shown
    assert "\nbatch [512] videos\n" in shown


@pytest.mark.parametrize("columns", [50, 80])
def test_no_meaning_is_lost_on_a_narrow_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["--list-settings"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    assert "merge-and-run blocks after concatenation" in " ".join(shown.split())


def test_of_one_model_its_own_settings_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-settings", "--model", "dmrnet"]) == 0
    shown = capsys.readouterr().out
    assert "\nbottleneck [4]" in shown
    assert "\nhidden " not in shown
