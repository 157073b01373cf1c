"""Builds the stand-ins for NVIDIA's libraries beside which an onnxruntime-gpu loads.

    python -m tests.cuda_stub.build FOLDER     # with YT8M_CUDA_PYTHON set; then LD_LIBRARY_PATH=FOLDER python ...

The C sources here hold what matters. Every other function that the provider's library asks for is generated: it
returns 0, CUDA's success.
"""

from __future__ import annotations

import mmap
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.cuda_stub import COMPILER, PYTHON

HERE = Path(__file__).parent
RUNTIME = "libcudart.so.13"
SOURCES = {  # in the order of linking: all use what the first defines
    RUNTIME: "cudart.c",
    "libcublas.so.13": "cublas.c",
    "libcublasLt.so.13": "cublaslt.c",
    "libcudnn.so.9": "cudnn.c",
    "libcuda.so.1": "cuda.c",
    "libcurand.so.10": None,
}
_WHERE = "import importlib.util as i; print(i.find_spec('onnxruntime').submodule_search_locations[0])"


def build(folder: Path) -> None:
    """Build every stand-in into `folder`."""
    package = subprocess.run([PYTHON, "-c", _WHERE], check=True, capture_output=True, text=True).stdout.strip()
    wanted = wanted_functions(Path(package) / "capi" / "libonnxruntime_providers_cuda.so")
    folder.mkdir(parents=True, exist_ok=True)
    for library, source in SOURCES.items():
        _compile(folder, library, source, sorted(wanted.get(library, ())))
    (folder / "libcudnn.so").symlink_to("libcudnn.so.9")


def wanted_functions(provider: Path) -> dict[str, set[str]]:
    """Stand-in -> functions that `provider` takes from it, by the loader or by name as it runs."""
    command = ["nm", "-D", "--undefined-only", str(provider)]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    wanted: dict[str, set[str]] = {"libcuda.so.1": set(re.findall(r" (cu[A-Z]\w*)$", listed, re.MULTILINE))}
    for name, library in re.findall(r" (\w+)@(lib\S+)", listed):
        if library in SOURCES:
            wanted.setdefault(library, set()).add(name)
    with provider.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        names = re.findall(rb"\0(cudnn[A-Z]\w+)(?=\0)", content)
    wanted["libcudnn.so.9"] = {name.decode() for name in names}
    return wanted


def _compile(folder: Path, library: str, source: str | None, wanted: Iterable[str]) -> None:
    generated = folder / f"{library}.c"
    generated.write_text("".join(f"__attribute__((weak)) int {name}(void) {{ return 0; }}\n" for name in wanted))
    versions = folder / f"{library}.map"
    versions.write_text(f"{library} {{ global: *; }};\n")
    command = [
        str(COMPILER),
        "-O1",
        "-Wall",
        "-Wextra",
        "-Wno-unused-parameter",
        "-shared",
        "-fPIC",
        "-pthread",
        f"-Wl,-soname,{library}",
    ]
    command += ["-o", str(folder / library), str(generated)]
    if source is not None:
        command.append(str(HERE / source))
    if library.startswith(("libcudart", "libcublas")):  # the others' functions have no versions
        command.append(f"-Wl,--version-script={versions}")
    if library != RUNTIME:
        command += [f"-L{folder}", f"-l:{RUNTIME}"]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
