"""The line that stands over every table: what was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

from scorer.kernels.loops import missing
from scorer.model.runtime import import_runtime, installed_runtimes
from scorer.system.cores import usable_cores


def machine() -> str:
    """Processor, usable cores, memory, Python, ONNX Runtime, and whether decoding is not compiled, as one line."""
    runtime = f"{' and '.join(installed_runtimes())} {import_runtime().__version__}"
    loops = f", decoding in NumPy ({missing})" if missing else ""
    return f"{processor()}, {usable_cores()} cores, {memory()}, Python {platform.python_version()}, {runtime}{loops}"


def processor() -> str:
    """The processor's name and, where it has it, the int8 instruction that matters here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    vnni = " (AVX512-VNNI)" if "avx512_vnni" in facts.get("flags", "") else ""
    return facts.get("model name", platform.machine()) + vnni


def memory() -> str:
    try:
        kibibytes = int(Path("/proc/meminfo").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return "memory unknown"
    return f"{kibibytes / 2**20:.0f} GiB"


if __name__ == "__main__":
    print(machine())
