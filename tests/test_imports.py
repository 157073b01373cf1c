"""Imports run one way: export -> train -> scorer, and within the scorer from its upper rooms to its lower ones. The
scorer never meets torch; help loads nothing heavy.
"""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import yt8m
from tests.onnx_models import save_model

ROOT = Path(__file__).parents[1]
SAMPLES = str(ROOT / "samples" / "*.tfrecord")
FORBIDDEN = {
    "scorer": {
        "train",
        "export",
        "yt8m",
        "torch",
        "onnx",
        "onnxscript",
        "safetensors",
        "matplotlib",
        "samples",
        "tests",
        "benchmarks",
    },
    "train": {"export", "yt8m", "onnx", "onnxscript", "onnxruntime", "samples", "tests", "benchmarks"},
    "export": {"yt8m", "onnxruntime", "samples", "tests", "benchmarks"},
}
HEAVY = ["numpy", "torch", "onnx", "onnxruntime", "onnxscript", "rich", "matplotlib", "safetensors", "crc32c", "google"]
COMMANDS = [["yt8m"], *(["yt8m", name] for name in yt8m.COMMANDS)]
COMMANDS += [[name] for name in ("train", "export", "scorer")]


LAYERS = (
    ("api", "cli", "__main__"),
    ("job",),
    ("pipeline",),
    ("outputs",),
    ("evaluation",),
    ("model",),
    ("inputs",),
    ("kernels",),
    ("system",),
    ("errors",),
)
"""The rooms of the scorer and the modules beside them, top to bottom: none imports what stands above it."""


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, by its full name, with the line; of `from m import n` both `m`
    and `m.n`.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            module = node.module or ""
            yield module, node.lineno
            yield from ((f"{module}.{alias.name}", node.lineno) for alias in node.names)


def modules_of(room: str) -> dict[str, Path]:
    """Every module of a package and of all its sub-packages: name -> file."""
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        assert (path.parent / "__init__.py").exists(), f"{path.parent} is no package: wheels leave it out"
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert len(found) > 10
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_run_one_way(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in modules_of(room).values()
        for name, line in imported(path)
        if name.split(".")[0] in FORBIDDEN[room]
    ]
    assert not wrong


def layer_of(module: str) -> int | None:
    """Which layer `scorer.ROOM...` belongs to; None for the package itself, whose names are the API's."""
    parts = module.split(".")
    return next((i for i, rooms in enumerate(LAYERS) if len(parts) > 1 and parts[1] in rooms), None)


def test_every_module_of_the_scorer_has_a_layer_and_each_layer_modules() -> None:
    names = modules_of("scorer").keys() - {"scorer"}
    assert [name for name in names if layer_of(name) is None] == []
    assert {name.split(".")[1] for name in names} == {room for rooms in LAYERS for room in rooms}


def test_within_the_scorer_imports_run_downwards() -> None:
    wrong = [
        f"{name} imports {other}, line {line}"
        for name, path in modules_of("scorer").items()
        for other, line in imported(path)
        if name != "scorer" and other.split(".")[0] == "scorer" and (layer_of(other) or 0) < (layer_of(name) or 0)
    ]
    assert not wrong


def depends_on(modules: dict[str, Path]) -> dict[str, set[str]]:
    """What each module imports of the same package. Imports for the type checker alone count too: a circle is one."""
    return {name: {other for other, _ in imported(path)} & modules.keys() - {name} for name, path in modules.items()}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_there_is_no_circle(room: str) -> None:
    left = depends_on(modules_of(room))
    left.pop(room)  # the package's own __init__ gives names on, lazily
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, "these import each other"


def test_only_one_module_owns_onnxruntime() -> None:
    owners = [name for name, path in modules_of("scorer").items() if "onnxruntime" in dict(imported(path))]
    assert owners == ["scorer.model.runtime"]


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_module_shadows_the_standard_library(room: str) -> None:
    """A file that is run as a script has its own folder first in the path."""
    paths = [path.relative_to(ROOT).with_suffix("") for path in modules_of(room).values()]
    names = {part for path in paths for part in path.parts} - {"__main__", "__init__"}
    assert names > {room, paths[-1].stem}
    assert not names & sys.stdlib_module_names


def test_no_variable_of_the_environment_is_there_for_tests() -> None:
    """What the packages read of the environment is other programs': tests patch what they want otherwise."""
    texts = {name: path.read_text(encoding="utf-8") for room in FORBIDDEN for name, path in modules_of(room).items()}
    assert len(texts) > 100
    assert [name for name, text in texts.items() if "YT8M_" in text or "PYTEST" in text] == []


# what begins with an underscore, is not ours, and is used: why
PRIVATE = {
    "_replace": "a named tuple's method, public by its documentation",
    "_exit": "os._exit, public by its documentation",
    "_ActionsContainer": "what argparse.ArgumentParser and its groups are, in annotations alone",
    "_ArgumentGroup": "what argparse's add_argument_group gives, in annotations alone",
    "torch.utils._python_dispatch": "TorchDispatchMode has no public name; in a test alone, which fails where it goes",
}


def private_names(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Attributes and modules with an underscore in front that a file asks for, and their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from [(node.attr, node.lineno)] * (node.attr.startswith("_") and not node.attr.endswith("__"))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            found = names if isinstance(node, ast.Import) else [node.module or "", *names]
            yield from ((name, node.lineno) for name in found if re.search(r"(^|\.)_(?!_)", name))


def own_names(tree: ast.Module) -> Iterator[str]:
    """What a file defines: functions, classes, variables, attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr


def test_no_private_name_of_another_package_is_used() -> None:
    """Python's, PyTorch's or another's may go with any release; what has a reason stands in PRIVATE."""
    folders = ("scorer", "train", "export", "samples", "benchmarks", "tests")
    paths = [ROOT / "yt8m.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in paths}
    ours = {name for tree in trees.values() for name in own_names(tree)}
    used = [(name, f"{path}:{line}") for path, tree in trees.items() for name, line in private_names(tree)]
    assert [found for found in used if found[0] not in {*ours, *PRIVATE}] == []
    assert {name for name, _ in used} >= {*PRIVATE}, "an exception that nothing needs"
    assert not {*PRIVATE} & ours


def test_a_private_name_is_found() -> None:
    code = "import torch._C\nfrom ray._private import x\nfrom re import _cache\ntorch._foreach_add_(a)\na.__dict__"
    assert [name for name, _ in private_names(ast.parse(code))] == [
        "torch._C",
        "ray._private",
        "_cache",
        "_foreach_add_",
    ]


def loaded_by(command: list[str], code: str) -> set[str]:
    """Top-level modules in sys.modules after `code` ran in a new interpreter with this command line."""
    tail = "\nimport sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code + tail, *command], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


HELP = """
import contextlib, importlib, io, sys
module, *rest = sys.argv[1:]
sys.argv = [module, *rest, "--help"]
text = io.StringIO()
with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
    importlib.import_module({"yt8m": "yt8m", "scorer": "scorer.cli.score"}.get(module, module + ".cli")).main()
assert "usage:" in text.getvalue(), text.getvalue()
"""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    assert not loaded_by(command, HELP) & set(HEAVY)


def test_the_help_of_score_loads_what_it_shows() -> None:
    """Each of these takes milliseconds, of thirty in all, where argparse does not take it anyway."""
    own = loaded_by(["yt8m", "score"], HELP) - loaded_by([], "import argparse")
    assert not own & {"dataclasses", "inspect", "logging", "concurrent"}


EVERY_MODULE = """
import importlib, pkgutil, sys, scorer
names = [module.name for module in pkgutil.walk_packages(scorer.__path__, "scorer.")]
for name in names:
    if not name.endswith("__main__"):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as absent:  # a package of an extra that is not installed
            if absent.name not in {"obstore", "fsspec", "pyarrow", "ray"}:
                raise
missing = set(sys.argv[1:]) - set(names) - {"scorer"}
assert not missing, missing
"""

SCORE = """
import sys
from scorer.cli.score import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
assert not code, code
"""

NOT_THE_SCORERS = {"torch", "onnx", "onnxscript", "safetensors", "train", "export", "matplotlib"}


def test_no_scorer_module_loads_torch() -> None:
    assert not loaded_by([*modules_of("scorer")], EVERY_MODULE) & NOT_THE_SCORERS


def test_scoring_loads_no_torch(tmp_path: Path) -> None:
    model = save_model(tmp_path / "tiny.onnx")
    samples = sorted(str(path) for path in (ROOT / "samples").glob("*.tfrecord"))
    loaded = loaded_by([*samples, "--model", model, "-o", str(tmp_path / "preds.csv")], SCORE)
    assert loaded >= {"numpy", "onnxruntime"}
    assert not loaded & NOT_THE_SCORERS


@pytest.mark.parametrize("missing", ["torch", "safetensors"])
@pytest.mark.parametrize(
    "command", [["train", "--data", SAMPLES], ["export", "--model", "bilstm"]], ids=["train", "export"]
)
def test_a_missing_package_is_one_line(command: list[str], missing: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import yt8m; sys.exit(yt8m.main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    given = [sys.executable, "-c", code, *command]
    done = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 7
    *phases, line = done.stderr.splitlines()
    assert all(phase.endswith("loading PyTorch") for phase in phases)  # on a slow machine
    assert f"{missing} is not installed; pip install" in line


def test_the_umbrella_knows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert yt8m.main(["nonsense"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in yt8m.COMMANDS)
    assert yt8m.main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in yt8m.COMMANDS)
