"""The model: one ONNX file behind `Model.run`.

    model = Model.open("models/bilstm.onnx", device="auto")
    scores, labels = model.run({"mean_rgb": rgb, "mean_audio": audio}, k=10)

docs/formats.md has the contract of the file; all of it is checked when the file is opened, before any shard is.

A model runs in lanes, one batch at a time in each. On the CPU the lanes share one session and have a thread each: that
costs no more core time than one lane of all threads, for BiLSTM 5 to 10% less, and no lane waits for another at the end
of an operator (benchmarks/lanes.py). On GPUs every lane is a session of its own (scorer/model/cuda.py).
"""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import DeviceError, ModelError, UsageError
from scorer.model.contract import DEFAULT_K, OUTPUTS, Contract, read_contract
from scorer.model.onnx_file import stamp, validate_and_hash
from scorer.model.runtime import (
    BOTH_INSTALLED,
    CPU,
    CUDA,
    Session,
    device_errors,
    import_runtime,
    installed_runtimes,
    open_cpu,
    open_cuda,
    without_graph,
)
from scorer.system.cores import usable_cores

if TYPE_CHECKING:
    from scorer.inputs.example import Schema
    from scorer.model.cuda import CudaLane

Arrays: TypeAlias = Mapping[str, NDArray[Any]]
Answers: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64]]

CPU_BATCH = 256  # activations stay in cache: fp32 and int8 run fastest at 128 to 512 (benchmarks/lanes.py)
CUDA_BATCH = 4096  # 0.4 TFLOP of the paper's BiLSTM, some milliseconds, against microseconds to launch it
_MOST_CPU_LANES = 16  # each takes memory for its activations, 15 MB for the paper's BiLSTM
_CUDA_LANES = 3  # one fills page-locked memory while one uploads and one computes

# ONNX bytes of a Cast from float32 x[n] to float16 y[n]: 20 times as fast as NumPy's own conversion.
HALVE_ONNX = bytes.fromhex(
    "08083a400a170a01781201792204436173742a090a02746f180aa001021201635a10"
    "0a0178120b0a09080112050a0312016e62100a0179120b0a09080a12050a0312016e42040a00100d"
)


class _CpuLane:
    """A turn at the CPU's session, which several threads may use at once."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def fit(self, inputs: Mapping[str, int], dtype: Any, size: int, k: int) -> None:
        """Nothing to prepare: memory is found while a batch runs."""

    def run(self, features: Arrays, k: int) -> Answers:
        """A video alone runs as two: a matrix-vector kernel, where one is chosen, rounds otherwise."""
        videos = len(next(iter(features.values())))
        if videos == 1:
            features = {name: np.repeat(values, 2, axis=0) for name, values in features.items()}
        scores, labels = self._session.run(OUTPUTS, {**features, "k": np.array([k], np.int64)})
        return scores[:videos], labels[:videos]


@dataclass(frozen=True)
class Placement:
    """Where a model runs, and what it was found to be there."""

    contract: Contract
    lanes: Sequence[_CpuLane | CudaLane]
    device: str
    provider: str
    reason: str


class Model:
    """An open model. `run` may be called from several threads; as many calls as `lanes` keep the device busy.

    path, sha256: the file. runtime: name and version of ONNX Runtime, and what else decides the bits of an answer.
    device: "cpu", "cuda:0" or "cuda:0,1"; provider: ONNX Runtime's name for it; reason: why this device.
    inputs: TFRecord feature -> width. labels: how many there are. names: theirs, if the file has them. metadata: all.
    dtype: of the file's own inputs; `run` takes float32 and converts.
    batch_size: videos that run at once in a lane. lanes: batches that run at once.
    notes: what a user should know about the run, such as batches that were halved for want of memory.
    """

    def __init__(self, path: str, sha256: str, placement: Placement, runtime: str, batch_size: int) -> None:
        """Use `Model.open`."""
        contract = placement.contract
        self.path, self.sha256, self.runtime = path, sha256, runtime
        self.inputs, self.labels, self.names = contract.inputs, contract.labels, contract.names
        self.metadata = contract.metadata
        self.device, self.provider, self.reason = placement.device, placement.provider, placement.reason
        self.batch_size, self.lanes = batch_size, len(placement.lanes)
        self.notes = [BOTH_INSTALLED] if len(installed_runtimes()) > 1 else []
        self.dtype = contract.dtype
        self._halving = open_cpu(import_runtime(), HALVE_ONNX, 1) if contract.dtype is np.float16 else None
        self._k = 0  # the most answers that the lanes are fitted for
        self._refitting = threading.Lock()
        self._idle: queue.SimpleQueue[_CpuLane | CudaLane] = queue.SimpleQueue()
        for lane in placement.lanes:
            self._idle.put(lane)
        self._refit(batch_size, min(DEFAULT_K, self.labels))

    @classmethod
    def open(
        cls,
        path: str,
        *,
        device: str = "auto",
        threads: int | None = None,
        batch_size: int | None = None,
        tf32: bool = False,
    ) -> Model:
        """Open the ONNX file at `path`.

        Args:
            device: "auto", "cpu", "cuda", "cuda:N" or "cuda:N,M,..."; "auto" takes CUDA where it opens.
            threads: CPU threads that compute; all usable cores by default.
            batch_size: videos that run at once in a lane; the device's best by default.
            tf32: let CUDA round the factors of float32 products to 10 bits, which is faster and less exact.

        Raises:
            ModelError: the file is absent, damaged or does not follow the contract.
            DeviceError: the device or the runtime is not there, or the model cannot run on it.
            UsageError: no device is called so.
        """
        before, sha256 = stamp(path), validate_and_hash(path)
        runtime = import_runtime()
        placement = _place(runtime, path, device, max(1, threads or usable_cores()), tf32)
        if stamp(path) != before:
            raise ModelError(f"{path} changed while it was opened", remedy="try again")
        on_cpu = placement.provider == CPU
        name = f"onnxruntime {runtime.__version__}" + (" TF32" if tf32 and not on_cpu else "")
        return cls(path, sha256, placement, name, batch_size or (CPU_BATCH if on_cpu else CUDA_BATCH))

    @property
    def schema(self) -> Schema:
        """The TFRecord features to decode."""
        from scorer.inputs.example import Schema

        return Schema(self.inputs)

    def run(self, features: Arrays, k: int = DEFAULT_K) -> Answers:
        """The `k` best labels of n videos: scores float32 (n, k), descending, and labels int64 (n, k).

        A video's answer depends on its features alone, neither on n nor on its neighbours. More videos than
        `batch_size` are spread over the lanes.

        Args:
            features: per input a float32 array (n, width), finite.
            k: 1 to `.labels`.

        Raises:
            UsageError: other features, shapes or k.
            DeviceError: the device failed, or has not enough memory for one video.
        """
        arrays, videos = self._checked(features, k)
        if videos == 0:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        parts = self._run_all(arrays, videos, k)
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([labels for _, labels in parts])

    def _checked(self, features: Arrays, k: int) -> tuple[Arrays, int]:
        if not 1 <= k <= self.labels:
            raise UsageError(f"k is {k}", remedy=f"choose 1 to {self.labels}, the labels of {self.path}")
        if missing := [name for name in self.inputs if name not in features]:
            raise UsageError(f"the model reads {', '.join(self.inputs)}, and {missing[0]} was not given")
        arrays = {name: np.ascontiguousarray(features[name], np.float32) for name in self.inputs}
        videos = len(next(iter(arrays.values())))
        for name, width in self.inputs.items():
            if arrays[name].shape != (videos, width):
                raise UsageError(f"{name} has shape {arrays[name].shape}, the model reads ({videos}, {width})")
        return arrays, videos

    def _run_all(self, arrays: Arrays, videos: int, k: int) -> list[Answers]:
        """The answers in pieces of at most `batch_size`, in order."""
        size = self.batch_size
        if videos <= size:
            return self._run_piece(arrays, videos, k)
        starts = range(0, videos, size)
        pieces = [{name: values[start : start + size] for name, values in arrays.items()} for start in starts]
        sizes = [min(size, videos - start) for start in starts]
        with ThreadPoolExecutor(self.lanes) as pool:
            answers = list(pool.map(self._run_piece, pieces, sizes, [k] * len(pieces)))
        return [part for parts in answers for part in parts]

    def _run_piece(self, arrays: Arrays, videos: int, k: int) -> list[Answers]:
        """The answers of a piece from one lane, or of smaller pieces where memory ran out."""
        if k > self._k:
            self._refit(self.batch_size, k)
        lane, size = self._idle.get(), self.batch_size
        try:
            if videos <= size:
                with device_errors(self.device):
                    return [lane.run(self._converted(arrays), k)]
        except MemoryError:
            size = size // 2
        finally:
            self._idle.put(lane)
        self._refit(size, k)
        return self._run_all(arrays, videos, k)

    def _converted(self, arrays: Arrays) -> Arrays:
        """The features in the type that the model reads."""
        halving = self._halving
        if halving is None:
            return arrays
        return {name: halving.run(None, {"x": x.ravel()})[0].reshape(x.shape) for name, x in arrays.items()}

    def _refit(self, size: int, k: int) -> None:
        """Make all lanes ready for batches of at most `size` and at least `k` answers; none of them runs meanwhile."""
        with self._refitting:
            size, k = min(size, self.batch_size), max(k, self._k)
            if (size, k) == (self.batch_size, self._k):
                return
            lanes = [self._idle.get() for _ in range(self.lanes)]
            try:
                size = self._fit(lanes, size, k)
            finally:
                for lane in lanes:
                    self._idle.put(lane)
            if size < self.batch_size:
                self.notes.append(f"memory ran out: batches of {size:,} instead of {self.batch_size:,}")
            self.batch_size, self._k = size, k

    def _fit(self, lanes: Sequence[_CpuLane | CudaLane], size: int, k: int) -> int:
        """Fit the lanes for batches of `size`, halved until memory suffices; returns the size."""
        while size >= 1:
            try:
                with device_errors(self.device):
                    for lane in lanes:
                        lane.fit(self.inputs, self.dtype, size, k)
                return size
            except MemoryError:
                size //= 2
        raise DeviceError(
            f"{self.device} has not enough memory for one video", remedy="free some, or take int8 or fp16"
        )


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


def _place(runtime: Any, path: str, device: str, threads: int, tf32: bool) -> Placement:
    """The model on `device`; on "auto" with CUDA where that opens and suits the model, else on the CPU."""
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


def _on_cpu(runtime: Any, path: str, threads: int, reason: str) -> Placement:
    lanes = min(threads, _MOST_CPU_LANES)
    # ONNX Runtime counts its caller, and so starts one less: these, for all lanes together, beside the lanes' own.
    session = open_cpu(runtime, path, threads - lanes + 1)
    return Placement(read_contract(path, session), [_CpuLane(session)] * lanes, "cpu", CPU, reason)


def _on_gpus(runtime: Any, path: str, gpus: Sequence[int], tf32: bool, reason: str) -> Placement:
    """Raises DeviceError where CUDA or a GPU does not open, or would leave the model's work to the CPU."""
    from scorer.model.cuda import CudaLane, CudaRuntime

    device = "cuda:" + ",".join(map(str, gpus))
    try:
        opened = [(gpu, open_cuda(runtime, path, gpu, tf32=tf32)) for gpu in gpus for _ in range(_CUDA_LANES)]
        with device_errors(device):
            contract = read_contract(path, opened[0][1], without_graph(runtime))
    except MemoryError:
        raise DeviceError(f"{device} has no room for {path}", remedy="free its memory, or use --device cpu") from None
    cuda = CudaRuntime()
    return Placement(contract, [CudaLane(runtime, session, gpu, cuda) for gpu, session in opened], device, CUDA, reason)
