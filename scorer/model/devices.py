"""The names of devices, as `score --device` and the Python interface take them."""

from __future__ import annotations

import re

from scorer.errors import DeviceError, UsageError

_NAMES = re.compile("auto|cpu|cuda(:all|:[0-9]{1,3}(,[0-9]{1,3})*)?")


def check_device(name: str) -> str:
    """`name`. Raises UsageError where no device is called so."""
    if not _NAMES.fullmatch(name):
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
