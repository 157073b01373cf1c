"""This package as it is installed: its version, and what installs it with more extras."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from scorer.errors import UsageError

NAME = "yt8m-edge"
_CHECKOUT = Path(__file__).parents[2]


def version() -> str:
    """The version installed; of a checkout that is not installed, words that say so."""
    from importlib import metadata

    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        return "run from its source"


def install_command(extras: str) -> str:
    """What installs this package with `extras` ("cpu", "cpu,train") from where it came from: a checkout, a wheel, a
    repository, or the package index.
    """
    source = _source()
    if "://" in source:
        return f"pip install '{NAME}[{extras}] @ {source}'"
    return f"pip install '{source or NAME}[{extras}]'"


def _source() -> str:
    """The path or URL that the package was installed from; "" where that was the index."""
    import json
    from importlib import metadata
    from urllib.parse import unquote, urlsplit

    try:
        recorded = metadata.distribution(NAME).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return str(_CHECKOUT) if (_CHECKOUT / "pyproject.toml").exists() else ""
    if recorded is None:
        return ""
    origin = json.loads(recorded)
    url = str(origin["url"])
    if url.startswith("file:"):
        return unquote(urlsplit(url).path)
    kind = origin.get("vcs_info", {}).get("vcs")
    return f"{kind}+{url}" if kind else url


def required(module: str, extra: str, what: str) -> Any:
    """The optional `module`. Raises UsageError where it is absent, which names the extra that `what` needs."""
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(f"{what} needs {module}, which is not installed", remedy=install_command(extra)) from None
