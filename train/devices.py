"""Where the training runs, and in which precision."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from scorer.errors import DeviceError, Hint
from scorer.system.cores import usable_cores


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices faster than float32 ones: tensor cores, AMX or AVX512-BF16."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # which is what it asks about
            return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def fast_half(device: torch.device) -> torch.dtype | None:
    """The 16-bit type whose matrices the device multiplies faster than float32's; None where there is none.

    bfloat16 where `bf16_is_fast`, which on GPUs is from Ampere on; float16 on those with tensor cores before it, Volta
    and Turing (compute capability 7.0 and 7.5).
    """
    if bf16_is_fast(device):
        return torch.bfloat16
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (7, 0):
        return torch.float16
    return None


def choose_device(name: str, local: int) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:N"; `local` picks the GPU of a process. Raises DeviceError.

    A GPU becomes this thread's own before anything is asked of it: whatever CUDA is asked without one opens a context
    of half a gigabyte on the first. Float32 on it is float32, not TF32: PyTorch's products are so by themselves, and
    cuDNN's recurrent layers from now on.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda") and not (name.startswith("cuda:") and name[5:].isdecimal()):
        raise DeviceError(f"{name}: no such device", remedy="choose auto, cpu, cuda or cuda:N")
    device = torch.device("cuda", local) if name in ("auto", "cuda") else torch.device(name)
    if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        found = f"{torch.cuda.device_count()} CUDA devices" if torch.cuda.is_available() else "no CUDA"
        raise DeviceError(f"{name}: this PyTorch finds {found}", hints=(Hint.OTHER_DEVICE,))
    torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = False
    return device


@contextmanager
def private_compiler_cache() -> Iterator[None]:
    """Within, PyTorch keeps what it compiles in a folder of this process's own, unless TORCHINDUCTOR_CACHE_DIR is set.

    Its own choice is a name in the temporary folder that anyone can foresee, and make before.
    """
    if _COMPILER_CACHE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="yt8m-train-") as folder:
        os.environ[_COMPILER_CACHE] = folder
        try:
            yield
        finally:
            os.environ.pop(_COMPILER_CACHE, None)


_COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def use_all_cores() -> None:
    """Compute with as many threads as this process may use cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())
