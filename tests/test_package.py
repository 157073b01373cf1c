"""The wheel holds what users need and nothing else."""

from __future__ import annotations

import configparser
import email
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from scorer.kernels import loops

ROOT = Path(__file__).parents[1]
ROOMS = ("scorer", "train", "export")
LARGEST = 14_000_000


def copy_of_the_tree(folder: Path) -> Path:
    """The tree without what git ignores, so that no stale build/ can slip into the wheel."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *ROOMS]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    top = ["pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE", "yt8m.py"]
    for name in [*filter(None, names), *top]:
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    if not (ROOT / ".git").exists():
        pytest.skip("the tree is no git checkout, so what belongs to it is not known")
    tree, built = copy_of_the_tree(tmp_path_factory.mktemp("tree")), tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(built)]
    done = subprocess.run([*command, str(tree)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = built.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def text_of(wheel: zipfile.ZipFile, ending: str) -> str:
    (name,) = (name for name in wheel.namelist() if name.endswith(ending))
    return wheel.read(name).decode()


@pytest.fixture
def metadata(wheel: zipfile.ZipFile) -> Message:
    return email.message_from_string(text_of(wheel, ".dist-info/METADATA"))


def test_wheel_is_small(wheel: zipfile.ZipFile) -> None:
    assert wheel.filename is not None
    assert Path(wheel.filename).stat().st_size <= LARGEST


def test_wheel_holds_every_module_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {path.relative_to(ROOT).as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    expected |= {
        "yt8m.py",
        "scorer/bundled/default.onnx",
        "scorer/kernels/native.pyi",
        *(f"{room}/py.typed" for room in ROOMS),
    }
    if not loops.missing:  # where there is a compiler
        expected.add("scorer/kernels/native.abi3.so")
    found = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert found == expected


def test_wheel_carries_its_licence_and_attributions(wheel: zipfile.ZipFile) -> None:
    assert "Apache License" in text_of(wheel, "/LICENSE")
    assert "CC BY 4.0" in text_of(wheel, "/NOTICE")


def test_an_older_python_is_refused_before_anything_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """pip itself tries every release of every dependency first, for many minutes."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 13, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or newer, and this is"):
        runpy.run_path(str(ROOT / "setup.py"))


def test_commands(wheel: zipfile.ZipFile) -> None:
    points = configparser.ConfigParser()
    points.read_string(text_of(wheel, "entry_points.txt"))
    assert dict(points["console_scripts"]) == {
        "yt8m": "yt8m:main",
        "train": "yt8m:train",
        "export": "yt8m:export",
        "score": "yt8m:score",
    }


def test_the_base_needs_no_runtime_and_no_torch(metadata: Message) -> None:
    needs = [need for need in metadata.get_all("Requires-Dist", []) if "extra ==" not in need]
    names = {need.split(">")[0].split("[")[0].strip() for need in needs}
    assert names == {"numpy", "crc32c", "protobuf", "rich"}
    assert set(metadata.get_all("Provides-Extra", [])) == {
        "cpu",
        "gpu",
        "gzip",
        "parquet",
        "ray",
        "remote",
        "train",
        "test",
    }


def pins(path: str) -> dict[str, str]:
    """Package -> version in a file of requirements, names as the index has them."""
    lines = [line.split(";")[0] for line in (ROOT / path).read_text().splitlines() if "==" in line and line[0] != "#"]
    pairs = (line.strip(" \\").split("==") for line in lines)
    return {name.lower().replace("_", "-"): version.strip() for name, version in pairs}


def test_the_build_has_the_version_that_is_pinned() -> None:
    """Constraints do not reach the environment of its own in which pip builds the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["build-system"]["requires"] == [f"setuptools=={pins('constraints.txt')['setuptools']}"]


@pytest.mark.parametrize(("lock", "extras"), [("locked/cpu.txt", {"cpu"}), ("locked/train.txt", {"cpu", "train"})])
def test_the_locked_set_is_the_tested_one_with_hashes(metadata: Message, lock: str, extras: set[str]) -> None:
    known, locked = pins("constraints.txt"), pins(lock)
    differing = {name for name, version in locked.items() if known.get(name, version) != version}
    assert not differing
    needs = metadata.get_all("Requires-Dist", [])
    names = {
        need.split(";")[0].split(">")[0].split("[")[0].strip().lower() for need in needs if extra_of(need) in extras
    }
    assert names | {"setuptools"} <= locked.keys()
    entries = re.split(r"\n(?=[a-z])", (ROOT / lock).read_text().partition("\n")[2])
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


def extra_of(need: str) -> str:
    """The extra that a requirement belongs to; "cpu" where all need it."""
    found = re.search(r"extra == ['\"](\w+)", need)
    return found[1] if found else "cpu"


def test_constraints_pin_every_dependency(metadata: Message) -> None:
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    needed = {need.split(">")[0].split("[")[0].strip().lower() for need in metadata.get_all("Requires-Dist", [])}
    assert needed - {"setuptools"} <= pinned
