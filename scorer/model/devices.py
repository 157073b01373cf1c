"""The names of devices and providers, as `score` and the Python interface take them. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from scorer.errors import DeviceError, UsageError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
"""ONNX Runtime's names of them."""
MOST_THREADS, MOST_VIDEOS = 256, 1 << 30
"""Threads that compute and videos of a batch that may be asked for: a slip of the pen must not exhaust the machine."""
_DEVICES = "auto|cpu|cuda(:all|:[0-9]{1,3}(,[0-9]{1,3})*)?"


def check_device(name: str) -> str:
    """`name`. Raises UsageError where no device is called so."""
    if not re.fullmatch(_DEVICES, name):
        remedy = "choose auto, cpu, cuda, cuda:N, cuda:N,M or cuda:all"
        raise UsageError(f"no device is called {name!r}", remedy=remedy)
    return name


def gpus(name: str, count: int) -> list[int]:
    """The GPUs, of `count`, that "cuda:0,2" or "cuda:all" means, or that "auto" and "cuda" may take: the first.

    Raises DeviceError where one of them is not there.
    """
    wanted = name.partition(":")[2] or "0"
    numbers = list(range(count)) if wanted == "all" else sorted({int(number) for number in wanted.split(",")})
    if not numbers or numbers[-1] >= count:
        raise DeviceError(f"{name} is not there: CUDA sees {count} GPU{'s' * (count != 1)}", remedy="see nvidia-smi")
    return numbers


PROVIDERS = {
    "openvino": ("OpenVINOExecutionProvider", "onnxruntime-openvino"),
    "dml": ("DmlExecutionProvider", "onnxruntime-directml"),
    "migraphx": ("MIGraphXExecutionProvider", "onnxruntime-migraphx"),
    "coreml": ("CoreMLExecutionProvider", "onnxruntime"),
}
"""Short name -> ONNX Runtime's, and the package of pip's that has it."""


class Provider(NamedTuple):
    """name: as in PROVIDERS. options: ONNX Runtime's own for it."""

    name: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Provider:
        """Of "openvino" or "openvino:device_type=GPU,num_streams=2". Raises UsageError."""
        name, _, rest = text.partition(":")
        if name not in PROVIDERS:
            raise UsageError(f"no provider is called {name!r}", remedy=f"choose {', '.join(PROVIDERS)}")
        options = dict(pair.partition("=")[::2] for pair in rest.split(",") if pair)
        if not all(options) or not all(options.values()):
            raise UsageError(f"{rest!r} are no options of {name}", remedy="write KEY=VALUE,KEY=VALUE")
        return cls(name, options)

    def __str__(self) -> str:
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}:{options}" if options else self.name

    @property
    def full_name(self) -> str:
        """ONNX Runtime's."""
        return PROVIDERS[self.name][0]

    def check_listed(self, runtime: Any) -> None:
        """Raises DeviceError where this ONNX Runtime was built without it."""
        if self.full_name not in runtime.get_available_providers():
            remedy = f"pip uninstall -y onnxruntime onnxruntime-gpu && pip install {PROVIDERS[self.name][1]}"
            raise DeviceError(f"the onnxruntime installed has no {self.full_name}", remedy=remedy)
