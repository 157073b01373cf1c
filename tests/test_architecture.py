"""docs/architecture.md is the map of the tree: a line for each module, and none for what is gone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.test_words import texts

ROOT = Path(__file__).parents[1]
PAGE = "docs/architecture.md"
PACKAGES = ("scorer", "train", "export")
SUFFIXES = {".py", ".c", ".h"}
LINE = re.compile(rf"^    ((?:{'|'.join(PACKAGES)})/\S+\.(?:py|c|h)) +(\S.*)$", re.MULTILINE)


def listed() -> dict[str, str]:
    """What the page says of each file."""
    return dict(LINE.findall((ROOT / PAGE).read_text(encoding="utf-8")))


def modules() -> set[str]:
    """Every source file but those that only name a package or start it."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.suffix in SUFFIXES]
    return {path.relative_to(ROOT).as_posix() for path in paths if not path.stem.startswith("__")}


def line_for(path: str) -> str:
    """The line that is missing: the path and the first sentence of the file's docstring."""
    source = (ROOT / path).read_text(encoding="utf-8")
    docstring = (ast.get_docstring(ast.parse(source)) if path.endswith(".py") else None) or "what it holds"
    return f"    {path:<40} {docstring.splitlines()[0].rstrip('.')}"


def test_every_module_has_its_line() -> None:
    missing = [line_for(path) for path in sorted(modules() - listed().keys())]
    assert not missing, f"add to {PAGE}, in your own words:\n" + "\n".join(missing)


def test_no_line_is_of_a_file_that_is_gone() -> None:
    gone = [f"    {path}" for path in sorted(listed().keys() - modules())]
    assert not gone, f"remove from {PAGE}:\n" + "\n".join(gone)


def test_what_the_page_links_to_is_there() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / PAGE).read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]


NAMED = re.compile(
    r"(?<![\w./-])(?:(?:scorer|train|export|benchmarks|tests|docs)/[\w./-]+?\.(?:py|md|c|onnx)\b"
    r"|(?:scorer|train|export|benchmarks|tests)(?:\.\w+){2,})"
)
NOT_NAMES = re.compile(r"/(\w+_)?NAME\.py$|^train[/.]models[/.]toy\b|^scorer\.model\.facts\b")
"""Placeholders, the model that a test adds, and a variable that is called as a package is."""


def is_there(name: str) -> bool:
    """Whether there is a file or a module of that name, or a module whose source has what follows its name."""
    if "/" in name:
        return (ROOT / name).exists()
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:count])
        sources = (path.with_suffix(".py"), path.with_suffix(".pyi"), path / "__init__.py")
        if source := next(filter(Path.exists, sources), None):
            return count == len(parts) or re.search(rf"\b{parts[count]}\b", source.read_text()) is not None
    return False


def test_modules_and_files_that_a_text_names_are_there() -> None:
    """In docstrings, docs, settings and strings that tests patch by. The changelog tells of what was."""
    wrong = [
        f"{where} names {name}"
        for where, text in texts()
        if where != "CHANGELOG.md"
        for name in NAMED.findall(text)
        if not is_there(name) and not NOT_NAMES.search(name)
    ]
    assert not wrong
