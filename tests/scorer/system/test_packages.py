"""The command that installs more of this package names where it came from: no index may have it yet, or another's."""

from __future__ import annotations

import json
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest

from scorer.system import packages


def installed_from(monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None) -> None:
    text = origin if origin is None else json.dumps(origin)
    monkeypatch.setattr(metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'yt8m-edge[cpu]'"),
        ({"url": "file:///home/me/yt%208m", "dir_info": {"editable": True}}, "pip install '/home/me/yt 8m[cpu]'"),
        ({"url": "file:///tmp/y-0.1.whl", "archive_info": {}}, "pip install '/tmp/y-0.1.whl[cpu]'"),
        (
            {"url": "https://x.org/y-0.1.whl", "archive_info": {}},
            "pip install 'yt8m-edge[cpu] @ https://x.org/y-0.1.whl'",
        ),
        (
            {"url": "https://x.org/y.git", "vcs_info": {"vcs": "git", "commit_id": "1"}},
            "pip install 'yt8m-edge[cpu] @ git+https://x.org/y.git'",
        ),
    ],
)
def test_the_command_names_where_the_package_came_from(
    monkeypatch: pytest.MonkeyPatch, origin: dict[str, Any] | None, command: str
) -> None:
    installed_from(monkeypatch, origin)
    assert packages.install_command("cpu") == command


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    monkeypatch.setattr(metadata, "version", absent)
    assert packages.install_command("cpu,train") == f"pip install '{packages._CHECKOUT}[cpu,train]'"
    assert packages.version() == "run from its source"
