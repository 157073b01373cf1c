"""Memory: what this process may still take, and giving it back."""

from __future__ import annotations

import contextlib
import math
import re
from pathlib import Path

from scorer.system.cgroups import OWN, ROOT, group_folders, read_text

_M_MMAP_THRESHOLD, _LARGE = -3, 1 << 20  # malloc.h; at glibc's first 128 KB each batch would map and unmap its blocks

_OUT_OF_MEMORY = re.compile("can't allocate memory|cannot allocate memory|out of memory", re.IGNORECASE)
_MEMINFO = Path("/proc/meminfo")
# The limit, the use, and what of the use the kernel takes back first: version 2, version 1.
_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory(groups: Path = OWN, root: Path = ROOT, meminfo: Path = _MEMINFO) -> float:
    """Bytes that this process can take before something swaps or is killed; infinite where the system does not say.

    The least of what the machine has and of what each control group above this process leaves.
    """
    found = [_left(folder, *names) for folder in group_folders("memory", groups, root) for names in _FILES]
    return min([_number(read_text(meminfo), "MemAvailable:") * 1024.0, *found])


def _left(folder: Path, limit: str, use: str, reclaimable: str) -> float:
    """Bytes that one control group leaves."""
    most, used = read_text(folder / limit).strip(), read_text(folder / use).strip()
    if not most.isdigit() or not used.isdigit():
        return math.inf
    cached = _number(read_text(folder / "memory.stat"), reclaimable)
    return max(0.0, float(most) - float(used) + (cached if cached < math.inf else 0))


def _number(text: str, name: str) -> float:
    """The number after `name` at the beginning of a line, infinite where there is none."""
    rows = (line.split() for line in text.splitlines())
    return next((float(row[1]) for row in rows if len(row) > 1 and row[0] == name and row[1].isdigit()), math.inf)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, the system's or a GPU's: PyTorch says so in a RuntimeError, Python in a MemoryError."""
    said = isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    return said or isinstance(error, MemoryError)


def give_memory_back() -> None:
    """Have the C library return large blocks to the system when they are freed; for processes that are ours alone.

    glibc keeps blocks of up to 32 MB once it has seen some freed (mallopt(3), M_MMAP_THRESHOLD), and ONNX Runtime frees
    each weight when it has repacked it: 41 MB of the report's BiLSTM would stay.
    """
    with contextlib.suppress(AttributeError, ImportError, OSError, TypeError):  # another C library, or no ctypes
        import ctypes

        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
