"""Where a model runs: on the CPU, or on GPUs where CUDA opens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scorer.errors import DeviceError, Hint, UsageError
from scorer.model.contract import Contract, read_contract
from scorer.model.fp16 import Fp16Conversion
from scorer.model.onnx_file import ModelFile
from scorer.model.predictor import DEFAULT_K
from scorer.model.runtime import CPU, CUDA, load_cuda, open_cpu
from scorer.model.slots import CpuSlot, Slot, SlotPool

CPU_BATCH = 256  # activations stay in cache: fp32 and int8 run fastest at 128 to 512 (benchmarks/slots.py)
CUDA_BATCH = 4096  # 0.4 TFLOP of the report's BiLSTM, some milliseconds, against microseconds to launch it
_MOST_CPU_SLOTS = 16  # each takes memory for its activations, 15 MB for the report's BiLSTM
_CUDA_SLOTS = 3  # one fills page-locked memory while one uploads and one computes


@dataclass(frozen=True)
class Placement:
    """Where a model runs, and what it was found to be there.

    pool: its execution slots, fitted. reason: why this device.
    engine: what of the device decides the bits of a score, to be written behind the engine's name and version.
    """

    contract: Contract
    pool: SlotPool
    device: str
    provider: str
    reason: str
    engine: str = ""


@dataclass(frozen=True)
class Wishes:
    """What a user may ask of a device.

    threads: CPU threads that compute. batch_size: videos that run at once in a slot; None for the device's best.
    tf32: let CUDA round the factors of float32 products to 10 bits.
    """

    threads: int
    batch_size: int | None = None
    tf32: bool = False


def place(runtime: Any, file: ModelFile, device: str, wishes: Wishes) -> Placement:
    """The model on `device`; on "auto" with CUDA where that opens and suits the model, else on the CPU.

    Raises:
        ModelError: ONNX Runtime cannot open the model, or it does not follow the contract.
        DeviceError: the device is not there, or the model cannot run on it.
        UsageError: no device is called so.
    """
    gpus = _gpus(device)
    if not gpus:
        return _on_cpu(runtime, file, wishes, "asked for")
    try:
        return _on_gpus(runtime, file, gpus, wishes, "CUDA opens here" if device == "auto" else "asked for")
    except DeviceError as error:
        if device == "auto":
            return _on_cpu(runtime, file, wishes, error.message)
        open_cpu(runtime, file, 1)  # raises ModelError where the file is at fault, and not the device
        raise


def _gpus(device: str) -> list[int]:
    """The GPUs that `device` names, or may take: [0, 2] of "cuda:0,2", [] of "cpu". Raises UsageError."""
    if device == "cpu":
        return []
    if device in ("auto", "cuda"):
        return [0]
    numbers = device.removeprefix("cuda:").split(",")
    if not device.startswith("cuda:") or not all(re.fullmatch("[0-9]{1,3}", number) for number in numbers):
        raise UsageError(f"no device is called {device!r}", remedy="choose auto, cpu, cuda, cuda:N or cuda:N,M")
    return sorted({int(number) for number in numbers})


def _on_cpu(runtime: Any, file: ModelFile, wishes: Wishes, reason: str) -> Placement:
    slots = min(wishes.threads, _MOST_CPU_SLOTS)
    # ONNX Runtime counts its caller, and so starts one less: these, for all slots together, beside the slots' own.
    session = open_cpu(runtime, file, wishes.threads - slots + 1)
    contract = read_contract(file.path, session)
    pool = _fitted(runtime, contract, "cpu", [CpuSlot(session)] * slots, wishes.batch_size or CPU_BATCH)
    return Placement(contract, pool, "cpu", CPU, reason)


def _on_gpus(runtime: Any, file: ModelFile, gpus: Sequence[int], wishes: Wishes, reason: str) -> Placement:
    """Raises DeviceError where CUDA or a GPU does not open, or would leave the model's work to the CPU."""
    from scorer.model.cuda import CudaRuntime, CudaSlot

    load_cuda(runtime)
    cuda, device = CudaRuntime(), "cuda:" + ",".join(map(str, gpus))
    try:
        slots = [CudaSlot(runtime, file, gpu, cuda, tf32=wishes.tf32) for gpu in gpus for _ in range(_CUDA_SLOTS)]
        contract = slots[0].contract(file.path)
    except MemoryError:
        what = f"{device} has no room for {file.path}"
        raise DeviceError(what, remedy="free its memory", hints=(Hint.ON_CPU,)) from None
    pool = _fitted(runtime, contract, device, slots, wishes.batch_size or CUDA_BATCH)
    names = " and ".join(sorted({cuda.name(gpu) for gpu in gpus}))
    engine = f"{' TF32' * wishes.tf32} on {names}, batches of {pool.batch_size:,}"
    return Placement(contract, pool, device, CUDA, reason, engine)


def _fitted(runtime: Any, contract: Contract, device: str, slots: Sequence[Slot], size: int) -> SlotPool:
    convert = Fp16Conversion(runtime) if contract.dtype is np.float16 else None
    k = min(DEFAULT_K, contract.labels)
    return SlotPool(slots, device, contract, size, k, convert, size_matters=device != "cpu")
