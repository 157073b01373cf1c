"""Where a model runs: on the CPU, or on GPUs where CUDA opens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scorer.errors import DeviceError, Hint, UsageError
from scorer.model.contract import Contract, read_contract
from scorer.model.runtime import CPU, CUDA, device_errors, open_cpu, open_cuda, without_graph
from scorer.model.slots import CpuSlot, Slot

CPU_BATCH = 256  # activations stay in cache: fp32 and int8 run fastest at 128 to 512 (benchmarks/slots.py)
CUDA_BATCH = 4096  # 0.4 TFLOP of the report's BiLSTM, some milliseconds, against microseconds to launch it
_MOST_CPU_SLOTS = 16  # each takes memory for its activations, 15 MB for the report's BiLSTM
_CUDA_SLOTS = 3  # one fills page-locked memory while one uploads and one computes


@dataclass(frozen=True)
class Placement:
    """Where a model runs, and what it was found to be there.

    batch_size: videos that run best at once in a slot of this device.
    """

    contract: Contract
    slots: Sequence[Slot]
    device: str
    provider: str
    reason: str
    batch_size: int


def place(runtime: Any, path: str, device: str, threads: int, tf32: bool) -> Placement:
    """The model on `device`; on "auto" with CUDA where that opens and suits the model, else on the CPU.

    Raises:
        ModelError: ONNX Runtime cannot open the model, or it does not follow the contract.
        DeviceError: the device is not there, or the model cannot run on it.
        UsageError: no device is called so.
    """
    gpus = _gpus(device)
    if not gpus:
        return _on_cpu(runtime, path, threads, "asked for")
    try:
        return _on_gpus(runtime, path, gpus, tf32, "CUDA opens here" if device == "auto" else "asked for")
    except DeviceError as error:
        if device == "auto":
            return _on_cpu(runtime, path, threads, error.message)
        open_cpu(runtime, path, 1)  # raises ModelError where the file is at fault, and not the device
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


def _on_cpu(runtime: Any, path: str, threads: int, reason: str) -> Placement:
    slots = min(threads, _MOST_CPU_SLOTS)
    # ONNX Runtime counts its caller, and so starts one less: these, for all slots together, beside the slots' own.
    session = open_cpu(runtime, path, threads - slots + 1)
    return Placement(read_contract(path, session), [CpuSlot(session)] * slots, "cpu", CPU, reason, CPU_BATCH)


def _on_gpus(runtime: Any, path: str, gpus: Sequence[int], tf32: bool, reason: str) -> Placement:
    """Raises DeviceError where CUDA or a GPU does not open, or would leave the model's work to the CPU."""
    from scorer.model.cuda import CudaRuntime, CudaSlot

    device = "cuda:" + ",".join(map(str, gpus))
    try:
        opened = [(gpu, open_cuda(runtime, path, gpu, tf32=tf32)) for gpu in gpus for _ in range(_CUDA_SLOTS)]
        with device_errors(device):
            contract = read_contract(path, opened[0][1], without_graph(runtime))
    except MemoryError:
        raise DeviceError(f"{device} has no room for {path}", remedy="free its memory", hints=(Hint.ON_CPU,)) from None
    cuda = CudaRuntime()
    slots = [CudaSlot(runtime, session, gpu, cuda) for gpu, session in opened]
    return Placement(contract, slots, device, CUDA, reason, CUDA_BATCH)
