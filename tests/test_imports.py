"""Imports run one way, export -> train -> scorer; the scorer never meets torch; help loads nothing heavy."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    },
    "train": {"export", "yt8m", "onnx", "onnxscript", "onnxruntime", "samples", "tests"},
    "export": {"yt8m", "onnxruntime", "samples", "tests"},
}
HEAVY = ["numpy", "torch", "onnx", "onnxruntime", "onnxscript", "rich", "matplotlib", "safetensors", "crc32c", "google"]
COMMANDS = [["yt8m"], *(["yt8m", name] for name in ("train", "export", "score", "doctor", "inspect"))]
COMMANDS += [[name] for name in ("train", "export", "scorer")]


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every top-level package that a file imports, anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0], node.lineno


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_run_one_way(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in files
        for name, line in imported(path)
        if name in FORBIDDEN[room]
    ]
    assert not wrong


def test_only_one_module_owns_onnxruntime() -> None:
    owners = {"runtime.py"}
    files = (ROOT / "scorer").glob("*.py")
    assert not [path.name for path in files if path.name not in owners and "onnxruntime" in dict(imported(path))]


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
    importlib.import_module("yt8m" if module == "yt8m" else module + ".cli").main()
assert "usage:" in text.getvalue(), text.getvalue()
"""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    assert not loaded_by(command, HELP) & set(HEAVY)


EVERY_MODULE = """
import importlib, pkgutil, scorer
for module in pkgutil.iter_modules(scorer.__path__):
    if module.name != "__main__":
        importlib.import_module("scorer." + module.name)
"""

SCORE = """
import sys
from scorer.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
assert not code, code
"""

NOT_THE_SCORERS = {"torch", "onnx", "onnxscript", "safetensors", "train", "export", "matplotlib"}


def test_no_scorer_module_loads_torch() -> None:
    assert not loaded_by([], EVERY_MODULE) & NOT_THE_SCORERS


def test_scoring_loads_no_torch(tmp_path: Path) -> None:
    """Also where torch is installed: `import tfrecord`, done carelessly, would load it."""
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
    (line,) = done.stderr.splitlines()
    assert f"{missing} is not installed; pip install" in line


def test_the_umbrella_knows_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    import yt8m

    assert yt8m.main(["nonsense"]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in yt8m.COMMANDS)
    assert yt8m.main([]) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in yt8m.COMMANDS)
