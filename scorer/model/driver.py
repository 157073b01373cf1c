"""What NVIDIA's driver says of itself and its GPUs, and whether ONNX Runtime's CUDA provider can use them.

Asked without ONNX Runtime and the CUDA runtime, which fail in their own words where driver or GPU are too old or too
new for them.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scorer.errors import DeviceError

DRIVERS = ("libcuda.so.1", "nvcuda.dll")
NEEDED = {12: "525", 13: "580"}  # CUDA's major version -> the first driver for it
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_FATBIN = struct.Struct("<IHHQ")  # magic, version, size of this header, size of what follows
_ENTRY = struct.Struct("<HHIQ12xI")  # kind, version, size of this header, size of the code, ..., architecture
_MAGIC, _PTX = 0xBA55ED50, 1


@dataclass(frozen=True)
class Gpu:
    """A GPU. capability: its compute capability times ten, such as 90 of an H100."""

    name: str
    capability: int


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver. cuda: major and minor version of the newest CUDA that it serves. gpus: in CUDA's order."""

    cuda: tuple[int, int]
    gpus: list[Gpu]


@dataclass(frozen=True)
class Kernels:
    """What a library has kernels for: GPUs of these capabilities and newer ones of the same generation.

    ptx: those from which the driver makes kernels for any newer GPU.
    """

    capabilities: frozenset[int]
    ptx: frozenset[int] = frozenset()

    def serve(self, capability: int) -> bool:
        same = {one for one in self.capabilities if one // 10 == capability // 10}
        return any(one <= capability for one in same | self.ptx)


def read_driver() -> Driver:
    """Raises DeviceError where there is no driver, it does not start or it has no GPU."""
    library = _load()
    _call(library, "cuInit", ctypes.c_uint(0))
    version = _number(library, "cuDriverGetVersion")
    gpus = [_gpu(library, number) for number in range(_number(library, "cuDeviceGetCount"))]
    if not gpus:
        raise DeviceError("NVIDIA's driver sees no GPU", remedy="see nvidia-smi")
    return Driver((version // 1000, version % 1000 // 10), gpus)


def read_kernels(library: Path) -> Kernels:
    """What the fat binaries in `library` hold, which nvcc puts there. Raises OSError."""
    found: dict[bool, set[int]] = {True: set(), False: set()}
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for kind, architecture in _entries(content):
            found[kind == _PTX].add(architecture)
    return Kernels(frozenset(found[False]), frozenset(found[True]))


def _entries(content: mmap.mmap) -> Iterable[tuple[int, int]]:
    """Kind and architecture of each piece of code."""
    magic, position = struct.pack("<I", _MAGIC), 0
    while 0 <= (position := content.find(magic, position)) <= len(content) - _FATBIN.size:
        _, version, header, size = _FATBIN.unpack_from(content, position)
        position += _FATBIN.size
        end = min(position + size, len(content)) if (version, header) == (1, _FATBIN.size) else position
        while position + _ENTRY.size <= end:
            kind, _, header, length, architecture = _ENTRY.unpack_from(content, position)
            yield kind, architecture
            position += header + length


def _load() -> Any:
    for name in DRIVERS:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DeviceError("there is no driver of NVIDIA's", remedy="install it")


def _gpu(library: Any, number: int) -> Gpu:
    name = ctypes.create_string_buffer(256)
    _call(library, "cuDeviceGetName", name, ctypes.c_int(len(name)), ctypes.c_int(number))
    major, minor = (
        _number(library, "cuDeviceGetAttribute", ctypes.c_int(attribute), ctypes.c_int(number))
        for attribute in (_MAJOR, _MINOR)
    )
    return Gpu(name.value.decode(errors="replace"), 10 * major + minor)


def _number(library: Any, function: str, *arguments: Any) -> int:
    number = ctypes.c_int()
    _call(library, function, ctypes.byref(number), *arguments)
    return number.value


def _call(library: Any, function: str, *arguments: Any) -> None:
    if code := getattr(library, function)(*arguments):
        words = "no GPU" if code == 100 else f"error {code}"  # CUDA_ERROR_NO_DEVICE
        raise DeviceError(f"NVIDIA's driver does not work: {function}: {words}", remedy="see nvidia-smi")
