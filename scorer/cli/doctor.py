"""`yt8m doctor`: what is installed, what really works, and the command that fixes the rest.

A provider counts as working when a session opened on it and computed, not when ONNX Runtime lists it.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scorer.cli.command import Parser, run
from scorer.errors import DeviceError, Yt8mError, printable
from scorer.system.packages import NAME, install_command
from scorer.system.terminal import takes_escapes

if TYPE_CHECKING:
    from scorer.model.driver import Gpu, Kernels

SCORER_PACKAGES = ("numpy", "crc32c", "protobuf", "rich")
TRAIN_PACKAGES = ("torch", "onnx", "onnxscript", "safetensors", "matplotlib")
_CUDA_LIBRARIES = {  # what ONNX Runtime's CUDA provider loads, newest first
    "driver": ("libcuda.so.1", "nvcuda.dll"),
    "cudart": ("libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll"),
    "cublas": ("libcublas.so.13", "libcublas.so.12", "cublas64_13.dll", "cublas64_12.dll"),
    "cudnn": ("libcudnn.so.9", "cudnn64_9.dll"),
}
_CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")  # what int8 and fp32 gain by


@dataclass(frozen=True)
class Finding:
    """One line of the report. remedy: the command that fixes it; "" where nothing is wrong."""

    topic: str
    state: str
    remedy: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report; returns 0 where the scorer can work, else DeviceError's exit code."""
    description = "Say what is installed, what works, and the command that fixes the rest."
    Parser("doctor", description, "exit codes: 0 the scorer works, 7 something needs fixing").parse_args(argv)
    return run("doctor", {}, _doctor)


def _doctor() -> int:
    findings = examine()
    _print(findings)
    return DeviceError.exit_code if any(finding.remedy for finding in findings) else 0


def examine() -> list[Finding]:
    """Every finding, in the order of the report."""
    from scorer.model.runtime import import_runtime

    try:
        runtime = import_runtime()
    except DeviceError as error:
        working = [Finding("onnx runtime", error.message, error.remedy)]
    else:
        working = [_package(runtime), *_providers(runtime), _bundled()]
    machine = Finding("python", f"{platform.python_version()} on {platform.platform()}")
    return [machine, *_packages(), _cores(), _decoder(), *working, _training()]


def _packages() -> Iterable[Finding]:
    for name in (NAME, *SCORER_PACKAGES):
        version = _version(name)
        if version is None and name == NAME:
            yield Finding(name, "not installed, run from its source")
        else:
            yield Finding(name, version or "missing", "" if version else f"pip install {name}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> Finding:
    from scorer.system.cores import affinity, cpu_quota, usable_cores

    quota = cpu_quota()
    limit = f"{quota:g} by control group" if quota is not None else "no control group limit"
    return Finding("cpu", f"{usable_cores()} cores usable ({affinity()} by affinity, {limit}); {_cpu_features()}")


def _decoder() -> Finding:
    from scorer.kernels.loops import missing

    return Finding("decoder", "compiled" if not missing else f"in NumPy, at less than half the speed ({missing})")


def _cpu_features(path: Path = Path("/proc/cpuinfo")) -> str:
    """The instruction sets in `path` that decide how fast a model runs."""
    try:
        words = set(path.read_text().split())
    except OSError:
        return platform.machine()
    return ", ".join(flag for flag in _CPU_FLAGS if flag in words) or platform.machine()


def _package(runtime: Any) -> Finding:
    from scorer.model.runtime import BOTH_INSTALLED, installed_runtimes, reinstall

    installed = installed_runtimes()
    if len(installed) > 1:
        return Finding("onnx runtime", BOTH_INSTALLED, f"{reinstall('cpu')} (or [gpu])")
    return Finding("onnx runtime", f"{''.join(installed) or 'onnxruntime'} {runtime.__version__}")


def _providers(runtime: Any) -> Iterable[Finding]:
    from scorer.model.devices import CPU, CUDA, PROVIDERS
    from scorer.model.fp16 import CAST_ONNX
    from scorer.model.runtime import open_cpu, open_cuda

    yield _tried(CPU, lambda: open_cpu(runtime, CAST_ONNX, 1), "pip install --force-reinstall onnxruntime")
    listed = runtime.get_available_providers()
    if CUDA in listed:
        yield _tried(CUDA, lambda: open_cuda(runtime, CAST_ONNX, 0), "nvidia-smi")
        yield _cuda_libraries()
        if _loads(_CUDA_LIBRARIES["driver"][0]) or _loads(_CUDA_LIBRARIES["driver"][1]):
            yield from _driver_and_gpus(runtime)
    if others := [name for name, (full_name, _) in PROVIDERS.items() if full_name in listed]:
        yield Finding("other providers", f"{', '.join(others)}: listed, and not tried; --provider takes them")


def _tried(provider: str, open_session: Callable[[], Any], remedy: str) -> Finding:
    """Whether a session opens on `provider` and computes."""
    import numpy as np

    try:
        halves = open_session().run(None, {"x": np.ones(3, np.float32)})[0]
    except Exception as error:
        return Finding(provider, f"does not work: {getattr(error, 'message', error)}", remedy)
    if halves.tolist() != [1, 1, 1]:
        return Finding(provider, "computes wrongly", remedy)
    return Finding(provider, "opens and computes")


def _cuda_libraries() -> Finding:
    """The libraries that the CUDA provider needs, as they stand once ONNX Runtime has loaded what pip brought."""
    from scorer.model.runtime import reinstall

    found = {part: next((name for name in names if _loads(name)), None) for part, names in _CUDA_LIBRARIES.items()}
    state = ", ".join(name or f"no {part}" for part, name in found.items())
    if found["driver"] is None:
        return Finding("cuda libraries", state, f"install NVIDIA's driver, or, without a GPU: {reinstall('cpu')}")
    return Finding("cuda libraries", state, "" if all(found.values()) else reinstall("gpu"))


def _driver_and_gpus(runtime: Any) -> Iterable[Finding]:
    """Whether driver and GPUs are those that this ONNX Runtime was built for, which it would say in CUDA's words."""
    from scorer.model.driver import NEEDED, Kernels, read_driver, read_kernels

    try:
        driver = read_driver()
    except DeviceError as error:
        yield Finding("driver", error.message, error.remedy)
        return
    built = getattr(getattr(runtime, "capi", None), "build_and_package_info", None)
    wanted = str(getattr(built, "cuda_version", "") or "")
    state = f"for CUDA {driver.cuda[0]}.{driver.cuda[1]}" + (f", ONNX Runtime for CUDA {wanted}" if wanted else "")
    major = int(wanted.partition(".")[0] or 0)
    old = driver.cuda[0] < major
    yield Finding("driver", state, f"install NVIDIA's driver {NEEDED.get(major, '')} or newer" if old else "")
    try:
        kernels = read_kernels(Path(runtime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so")
    except OSError:
        kernels = Kernels(frozenset())
    for number, gpu in enumerate(driver.gpus):
        yield _gpu(number, gpu, kernels)


def _gpu(number: int, gpu: Gpu, kernels: Kernels) -> Finding:
    state = f"{gpu.name}, compute capability {gpu.capability / 10}"
    if not kernels.capabilities or kernels.serve(gpu.capability):
        return Finding(f"cuda:{number}", state)
    served = ", ".join(str(capability / 10) for capability in sorted(kernels.capabilities))
    remedy = "use another GPU, --device cpu, or an onnxruntime-gpu built for this one"
    return Finding(f"cuda:{number}", f"{state}; ONNX Runtime has kernels for {served} and newer ones of each", remedy)


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _bundled() -> Finding:
    """Whether the model that comes with the scorer opens and predicts; opening one asks it about two videos."""
    from scorer.model.find import BUNDLED
    from scorer.model.model import Model

    try:
        model = Model.open(str(BUNDLED), device="cpu")
    except Yt8mError as error:
        return Finding(
            "bundled model", error.message, install_command("cpu").replace("install", "install --force-reinstall", 1)
        )
    facts = model.facts
    name = f"{facts.metadata.get('yt8m.model')} {facts.metadata.get('yt8m.precision')}"
    return Finding("bundled model", f"{name} opens and predicts {facts.labels:,} labels")


def _training() -> Finding:
    """Whether `train` and `export` have what they need. Read off the metadata: importing torch takes seconds."""
    versions = {name: _version(name) for name in TRAIN_PACKAGES}
    if missing := [name for name, version in versions.items() if version is None]:
        return Finding("train and export", f"without {', '.join(missing)}: {install_command('cpu,train')} for them")
    return Finding("train and export", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _print(findings: Sequence[Finding]) -> None:
    """A table on a terminal and the commands below it, else a line for each finding."""
    if not takes_escapes(sys.stdout):
        for finding in findings:
            fix = f"; fix: {finding.remedy}" if finding.remedy else ""
            print(printable(f"{'PROBLEM' if finding.remedy else 'ok':<8}{finding.topic}: {finding.state}{fix}"))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("", "", "state", title="yt8m doctor", title_justify="left")
    for finding in findings:
        mark = "[red]✗[/]" if finding.remedy else "[green]✓[/]"
        table.add_row(mark, finding.topic, Text(printable(finding.state)))
    console = Console()
    console.print(table)
    for finding in findings:
        if finding.remedy:  # outside the table, which would break a command into lines that cannot be copied
            console.print(Text(printable(f"to fix {finding.topic}: {finding.remedy}")), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
