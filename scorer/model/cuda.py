"""One execution slot on one NVIDIA GPU: a session with fixed buffers, so that one's copies overlap another's compute.

    features --copy--> page-locked array --DMA--> GPU tensor --session--> k scores and labels --DMA--> arrays

Copies go through the CUDA runtime that ONNX Runtime itself has loaded, called by ctypes, which lets go of Python's
lock; ONNX Runtime's own Python copies hold it. A batch always runs at full size, and what lies behind the rows of a
smaller one is computed and thrown away: one shape means one plan, one CUDA graph and the same kernels, hence the same
bits, for every video.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.errors import DeviceError
from scorer.model.contract import OUTPUTS
from scorer.model.predictor import Features, Predictions
from scorer.model.runtime import CUDA, Session, without_graph

Array: TypeAlias = NDArray[Any]

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll")
_TRIALS = 5


class CudaRuntime:
    """The few calls of libcudart that a slot needs. Each raises MemoryError, or DeviceError with CUDA's own words."""

    def __init__(self) -> None:
        self._library = _load_library()

    def use(self, device: int) -> None:
        """Make `device` the one that the calling thread speaks to."""
        self._call("cudaSetDevice", ctypes.c_int(device))

    def page_locked(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A zeroed array that the GPU reads and writes by itself, without the CPU."""
        count = math.prod(shape)
        size = -(-count * np.dtype(dtype).itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        owner = np.frombuffer(mmap.mmap(-1, size), dtype, count)  # whole pages: no page may be locked twice
        pointer = ctypes.c_void_p(owner.ctypes.data)
        self._call("cudaHostRegister", pointer, ctypes.c_size_t(size), ctypes.c_uint(0))
        weakref.finalize(owner, self._library.cudaHostUnregister, pointer)
        return owner.reshape(shape)

    def stream(self) -> ctypes.c_void_p:
        """A queue of copies that waits for no other queue."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        return stream

    def upload(self, pointer: int, array: Array, stream: ctypes.c_void_p) -> None:
        """Queue a copy of `array` to the GPU's memory at `pointer`."""
        self._copy(pointer, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def download(self, array: Array, pointer: int, stream: ctypes.c_void_p) -> None:
        """Queue a copy from the GPU's memory at `pointer` into `array`."""
        self._copy(array.ctypes.data, pointer, array.nbytes, _TO_HOST, stream)

    def wait(self, stream: ctypes.c_void_p) -> None:
        """Until the copies in the queue are done."""
        self._call("cudaStreamSynchronize", stream)

    def _copy(self, to: int, source: int, size: int, kind: int, stream: ctypes.c_void_p) -> None:
        arguments = ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(kind), stream
        self._call("cudaMemcpyAsync", *arguments)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._library, name)(*arguments)
        if code == _OUT_OF_MEMORY:
            raise MemoryError(name)
        if code != 0:
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
            words = self._library.cudaGetErrorString(ctypes.c_int(code)) or b"unknown error"
            raise DeviceError(f"CUDA failed: {name}: {words.decode()}", remedy="see nvidia-smi and `yt8m doctor`")


def _load_library() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DeviceError(f"none of {', '.join(_LIBRARIES)} is there", remedy="pip install 'yt8m-edge[gpu]'")


@dataclass(frozen=True)
class Buffers:
    """What a slot holds for one batch: per input and output a page-locked array and a tensor on the GPU."""

    arrays: dict[str, Array]
    tensors: dict[str, Any]  # onnxruntime.OrtValue
    binding: Any  # onnxruntime.IOBinding


class CudaSlot:
    """A session on one GPU, and buffers for one batch. One thread at a time may use it."""

    def __init__(self, runtime: Any, session: Session, device: int, cuda: CudaRuntime) -> None:
        """
        Args:
            runtime: the module onnxruntime.
            session: its session on GPU number `device`, used by this slot alone.
        """
        self._runtime = runtime
        self._session = session
        self._device = device
        self._cuda = cuda
        self._options: Any = None
        self._graph_id = 0
        self._stream: ctypes.c_void_p | None = None
        self._buffers: Buffers | None = None

    def fit(self, inputs: Mapping[str, int], dtype: Any, size: int, k: int) -> None:
        """Make buffers for batches of `size` and `k` labels each.

        No other slot may run meanwhile, since CUDA refuses allocations while a graph is being captured.

        Raises:
            MemoryError: the GPU has not enough.
        """
        self._cuda.use(self._device)
        self._stream = self._stream or self._cuda.stream()
        self._buffers = None
        shapes: dict[str, tuple[tuple[int, int], Any]] = {
            name: ((size, width), dtype) for name, width in inputs.items()
        }
        shapes |= {"scores": ((size, k), np.float32), "labels": ((size, k), np.int64)}
        make = self._runtime.OrtValue.ortvalue_from_shape_and_type
        tensors = {name: make(list(shape), kind, "cuda", self._device) for name, (shape, kind) in shapes.items()}
        arrays = {name: self._cuda.page_locked(shape, kind) for name, (shape, kind) in shapes.items()}
        tensors["k"] = self._runtime.OrtValue.ortvalue_from_numpy(np.array([k], np.int64))
        buffers = Buffers(arrays, tensors, self._bind(tensors))
        for name in inputs:
            self._cuda.upload(tensors[name].data_ptr(), arrays[name], self._stream)  # zeros
        self._cuda.wait(self._stream)
        self._choose_graph(buffers)
        self._buffers = buffers

    def run(self, features: Features, k: int) -> Predictions:
        """Scores and labels (n, k) of n videos; size and k at most what the slot was fitted for."""
        buffers, stream = self._buffers, self._stream
        if buffers is None or stream is None:
            raise DeviceError(f"cuda:{self._device} could not be set up")
        self._cuda.use(self._device)
        videos = len(next(iter(features.values())))
        for name, values in features.items():
            staged = buffers.arrays[name][:videos]
            np.copyto(staged, values)
            self._cuda.upload(buffers.tensors[name].data_ptr(), staged, stream)
        self._cuda.wait(stream)
        self._session.run_with_iobinding(buffers.binding, self._options)
        scores, labels = buffers.arrays["scores"], buffers.arrays["labels"]
        self._cuda.download(scores, buffers.tensors["scores"].data_ptr(), stream)
        self._cuda.download(labels, buffers.tensors["labels"].data_ptr(), stream)
        self._cuda.wait(stream)
        return Predictions(scores[:videos, :k].copy(), labels[:videos, :k].copy())

    def _bind(self, tensors: Mapping[str, Any]) -> Any:
        """A binding of every tensor, which must outlive it: older ONNX Runtimes keep no reference."""
        binding = self._session.io_binding()
        for name, tensor in tensors.items():
            bind = binding.bind_ortvalue_output if name in OUTPUTS else binding.bind_ortvalue_input
            bind(name, tensor)
        return binding

    def _choose_graph(self, buffers: Buffers) -> None:
        """Replay the session as one CUDA graph where that is possible and faster."""
        self._options = without_graph(self._runtime)
        if self._session.get_provider_options().get(CUDA, {}).get("enable_cuda_graph") != "1":
            return
        plain, graph = self._options, self._runtime.RunOptions()
        self._graph_id += 1  # an earlier graph would write to the buffers it was captured with
        graph.add_run_config_entry("gpu_graph_id", str(self._graph_id))
        with contextlib.suppress(Exception):  # whatever stands against a capture, the plain run does without
            self._options = min((plain, graph), key=lambda options: self._seconds(buffers, options))

    def _seconds(self, buffers: Buffers, options: Any) -> float:
        """The best of a few runs, after one that warms up and captures the graph if `options` ask for it."""
        times = []
        for _ in range(_TRIALS):
            began = time.perf_counter()
            self._session.run_with_iobinding(buffers.binding, options)
            times.append(time.perf_counter() - began)
        return min(times[1:])
