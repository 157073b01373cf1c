"""The tests of the loops and of what decodes with them, with every access to memory and every sum checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TESTS = ["tests/scorer/kernels/test_native.py", "tests/scorer/kernels/test_loops.py", "tests/fuzz/test_fuzz.py"]
TESTS += ["tests/scorer/inputs/test_example.py", "tests/scorer/outputs/test_formats.py"]
TESTS += ["tests/scorer/inputs/test_frames.py", "tests/scorer/inputs/test_frame_loops.py"]
TESTS += ["tests/scorer/inputs/test_plain_files.py"]
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-g", "-O1"]
CHECKS += ["-ffp-contract=off"]


def runtime(compiler: str) -> list[str]:
    """The libraries to load before all others, as GCC has them. Python itself is not compiled for this."""
    found = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so"):
        command = [compiler, f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(path) or not os.path.exists(path):
            pytest.skip(f"{compiler} has no {name}")
        found.append(os.path.realpath(path))
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of what the tests need, its loops compiled with checks, and the environment to run it in."""
    compiler = shutil.which("gcc")
    if not compiler or sys.platform != "linux":
        pytest.skip("no gcc, or not on Linux")
    libraries = runtime(compiler)
    folder = tmp_path_factory.mktemp("sanitized")
    ignored = shutil.ignore_patterns("*.so", "*.onnx", "__pycache__", ".hypothesis")
    for name in ("scorer", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    source, target = folder / "scorer/kernels/native.c", folder / "scorer/kernels/native.abi3.so"
    include = f"-I{sysconfig.get_paths()['include']}"
    macros = "-DPy_LIMITED_API=0x030b0000"
    command = [compiler, "-shared", "-fPIC", *CHECKS, macros, include, str(source), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment = plain | {  # coverage's own memory would count as ours
        "LD_PRELOAD": " ".join(libraries),
        "PYTHONPATH": str(folder),
        "PYTHONMALLOC": "malloc",  # or small overruns stay within one of Python's own pools
        "ASAN_OPTIONS": "detect_leaks=0,allocator_may_return_null=1",  # Python keeps much until it ends
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return folder, environment


def test_the_loops_are_the_checked_ones(tree: tuple[Path, dict[str, str]]) -> None:
    folder, environment = tree
    code = "from scorer.kernels import native, loops; print(native.__file__, loops.missing)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [str(folder / "scorer/kernels/native.abi3.so")], done.stderr


@pytest.mark.parametrize("name", TESTS)
def test_no_access_is_out_of_bounds(tree: tuple[Path, dict[str, str]], name: str) -> None:
    folder, environment = tree
    which = "not numpy and not memory"  # the sanitizer keeps freed memory for a while
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", which, "-p", "no:cacheprovider", "-s", name]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
