"""Where a model runs: on the CPU, or on GPUs where CUDA opens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scorer.errors import DeviceError, Hint, UsageError
from scorer.model.arguments import check_whole_number
from scorer.model.contract import Contract, read_contract, try_session
from scorer.model.devices import CPU, CUDA, MOST_THREADS, MOST_VIDEOS, Provider, check_device, gpus
from scorer.model.fp16 import Fp16Conversion
from scorer.model.onnx_file import ModelFile
from scorer.model.predictor import DEFAULT_K
from scorer.model.providers import ProviderSlot, without_default_k
from scorer.model.runtime import (
    NO_CUDA,
    GpuOptions,
    device_errors,
    has_cuda,
    load_cuda,
    open_cpu,
    open_provider,
)
from scorer.model.slots import CpuSlot, Slot, SlotPool
from scorer.system.cores import usable_cores
from scorer.system.threads import fewer_threads, startable

CPU_BATCH = 256  # activations stay in cache: fp32 and int8 run fastest at 128 to 512 (benchmarks/slots.py)
CUDA_BATCH = 4096  # 0.4 TFLOP of the report's BiLSTM, some milliseconds, against microseconds to launch it
_MOST_CPU_SLOTS = 16  # each takes memory for its activations, 15 MB for the report's BiLSTM
_SIZE = re.compile("batches of ([0-9][0-9,]{0,19})$")
_CUDA_SLOTS = 3  # one waits for a batch or brings answers while one uploads and one computes


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


def fitted_size(runtime: str) -> int | None:
    """The size of batches that `runtime`, as `ModelFacts` has it, says; None where the bits depend on none."""
    found = _SIZE.search(runtime)
    return int(found[1].replace(",", "")) if found else None


@dataclass(frozen=True)
class DeviceOptions:
    """Where a model is to run, and how.

    device: "auto", "cpu", "cuda", "cuda:N", "cuda:N,M,..." or "cuda:all"; "auto" takes CUDA where it opens.
    threads: CPU threads that compute; all usable cores by default.
    batch_size: videos that run at once in a slot; the device's best by default.
    tf32: let CUDA round the factors of float32 products to 10 bits, which is faster and less exact.
    gpu_memory: bytes that ONNX Runtime may take of each GPU; all by default.
    provider: instead of a device, another execution provider of ONNX Runtime: see `scorer.model.devices.Provider`.
    cuda_graphs: let each slot on a GPU replay a CUDA graph, so that what they gain there can be measured.
    """

    device: str = "auto"
    threads: int | None = None
    batch_size: int | None = None
    tf32: bool = False
    gpu_memory: int | None = None
    provider: str | None = None
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError."""
        if self.threads is not None:
            check_whole_number("threads", self.threads, 1, MOST_THREADS)
        if self.batch_size is not None:
            check_whole_number("batch_size", self.batch_size, 1, MOST_VIDEOS)
        if self.provider is not None and self.device != "auto":
            raise UsageError("a device and a provider were both given", remedy="leave one out")
        if self.gpu_memory is not None:
            check_whole_number("gpu_memory", self.gpu_memory, 1, 1 << 62)


def place(runtime: Any, file: ModelFile, options: DeviceOptions) -> Placement:
    """The model on its device; on "auto" with CUDA where that opens and suits the model, else on the CPU.

    Raises:
        ModelError: ONNX Runtime cannot open the model, or it does not follow the contract.
        DeviceError: the device is not there, or the model cannot run on it.
        UsageError: no device is called so.
    """
    if options.provider is not None:
        return _on_provider(runtime, file, Provider.parse(options.provider), options)
    auto = options.device == "auto"
    check_device(options.device)
    if options.device == "cpu":
        return _on_cpu(runtime, file, options, "asked for")
    if auto and not has_cuda(runtime):  # known before what would remedy it, which takes 10 ms to find out
        return _on_cpu(runtime, file, options, NO_CUDA)
    try:
        return _on_gpus(runtime, file, options, "CUDA opens here" if auto else "asked for")
    except DeviceError as error:
        if auto:
            return _on_cpu(runtime, file, options, error.message)
        open_cpu(runtime, file, 1)  # raises ModelError where the file is at fault, and not the device
        raise


def _on_cpu(runtime: Any, file: ModelFile, options: DeviceOptions, reason: str) -> Placement:
    wanted = options.threads or usable_cores()
    # ONNX Runtime hangs where it wants more than the system starts: github.com/microsoft/onnxruntime/issues/15146.
    threads = wanted if wanted <= _MOST_CPU_SLOTS else max(1, startable(wanted))
    slots = min(threads, _MOST_CPU_SLOTS)
    # ONNX Runtime counts its caller, and so starts one less: these, for all slots together, beside the slots' own.
    session = open_cpu(runtime, file, threads - slots + 1)
    contract = read_contract(file.path, session)
    pool = _fitted(runtime, contract, "cpu", [CpuSlot(session, file.path)] * slots, options.batch_size or CPU_BATCH)
    if threads < wanted:
        pool.notes.append(fewer_threads(threads, wanted))
    return Placement(contract, pool, "cpu", CPU, reason)


def _on_gpus(runtime: Any, file: ModelFile, options: DeviceOptions, reason: str) -> Placement:
    """Raises DeviceError where CUDA or a GPU does not open, or would leave the model's work to the CPU."""
    from scorer.model.cuda import CudaRuntime, CudaSlot

    load_cuda(runtime)
    cuda = CudaRuntime()
    numbers = gpus(options.device, cuda.count())
    device = "cuda:" + ",".join(map(str, numbers))
    kind = _one_kind(device, [cuda.name(gpu) for gpu in numbers])
    memory = options.gpu_memory // _CUDA_SLOTS if options.gpu_memory else None
    session = GpuOptions(tf32=options.tf32, memory=memory, graphs=options.cuda_graphs)
    try:
        slots = [CudaSlot(runtime, file, gpu, cuda, session) for gpu in numbers for _ in range(_CUDA_SLOTS)]
        contract = slots[0].contract(file.path)
    except MemoryError:
        what = f"{device} has no room for {file.path}"
        raise DeviceError(what, remedy="free its memory", hints=(Hint.ON_CPU,)) from None
    size, k = options.batch_size or CUDA_BATCH, min(DEFAULT_K, contract.labels)
    pool = SlotPool(slots, device, contract, size, k, size_matters=True)  # these convert features themselves
    engine = f"{' TF32' * options.tf32} on {kind}, {_batches(pool)}"
    return Placement(contract, pool, device, CUDA, reason, engine)


def _one_kind(device: str, names: Sequence[str]) -> str:
    """The name of all GPUs. Raises DeviceError for several: a score's last digits would go by which one was free."""
    kinds = sorted(set(names))
    if len(kinds) > 1:
        reason = f"{device} are GPUs of several kinds, {' and '.join(kinds)}, whose scores differ in the last digits"
        raise DeviceError(reason, remedy="name those of one kind")
    return kinds[0]


def _on_provider(runtime: Any, file: ModelFile, provider: Provider, options: DeviceOptions) -> Placement:
    """Raises DeviceError where it is not there, does not open or would leave the model's work to the CPU."""
    provider.check_listed(runtime)
    name = str(provider)
    try:
        contract = read_contract(file.path, open_cpu(runtime, file, 1))
        model = without_default_k(Path(file.address).read_bytes())
        session = open_provider(runtime, model, provider.full_name, provider.options)
        with device_errors(name):
            try_session(session, contract)
    except MemoryError:
        raise DeviceError(f"{name} has no room for {file.path}", hints=(Hint.ON_CPU,)) from None
    pool = _fitted(runtime, contract, name, [ProviderSlot(session)], options.batch_size or CPU_BATCH)
    engine = f" with {name}, {_batches(pool)}"
    return Placement(contract, pool, name, provider.full_name, "asked for", engine)


def _batches(pool: SlotPool) -> str:
    """As `fitted_size` reads it."""
    return f"batches of {pool.batch_size:,}"


def _fitted(runtime: Any, contract: Contract, device: str, slots: Sequence[Slot], size: int) -> SlotPool:
    convert = Fp16Conversion(runtime) if contract.dtype is np.float16 else None
    k = min(DEFAULT_K, contract.labels)
    return SlotPool(slots, device, contract, size, k, convert, size_matters=device != "cpu")
