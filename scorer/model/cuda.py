"""One execution slot on one NVIDIA GPU: a session with fixed buffers, so that one's copies overlap another's compute.

    features, page-locked --DMA--> GPU tensor --session--> k scores and labels --DMA--> arrays, page-locked

Features that lie in a `CudaSlot.buffer`, as a job's do, are uploaded from there; of others the slot first makes a copy,
into a page-locked array of its own. So it does for models that read float16, which is what converts the features.
Copies go through the CUDA runtime that ONNX Runtime itself has loaded, called by ctypes, which lets go of Python's
lock; ONNX Runtime's own Python copies hold it. A batch always runs at full size, and what lies behind the rows of a
smaller one is computed and thrown away: cuBLAS chooses its kernels by the size, so one size means the same kernels,
hence the same bits, for every video.

A slot has a thread of its own, in which its session is opened, fitted and run. ONNX Runtime gives each thread that runs
a session a stream and handles of cuBLAS and cuDNN, which takes milliseconds and memory, and takes them back as late as
another thread comes; one thread makes them once.

CUDA graphs are not used unless `GpuOptions.graphs` says so: there is little to gain, some 60 launches of microseconds
beside a batch's milliseconds of work, which another slot's kernels fill. `benchmarks.gpu` measures sessions and jobs
with and without. With them each slot captures one graph while it is fitted, when no other slot runs: CUDA refuses all
threads' allocations while one captures.
"""

from __future__ import annotations

import ctypes
import errno
import math
import mmap
import queue
import sys
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from scorer.errors import DeviceError
from scorer.model.contract import EMBEDDINGS, OUTPUTS, Contract, outputs, read_contract
from scorer.model.fp16 import Fp16Conversion
from scorer.model.onnx_file import ModelFile
from scorer.model.predictor import Features, Predictions
from scorer.model.runtime import GpuOptions, Session, device_errors, open_cuda
from scorer.model.slots import Outcome
from scorer.model.ties import SPARE, settle
from scorer.system.packages import install_command
from scorer.system.threads import no_thread, start_threads

Array: TypeAlias = NDArray[Any]
R = TypeVar("R")

_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind
_NON_BLOCKING = 1  # cudaStreamNonBlocking
_PORTABLE = 1  # cudaHostRegisterPortable: for all GPUs
_NO_GRAPH = -1  # ONNX Runtime's number for a run that is neither captured nor replayed
_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_PROPERTIES_BYTES = 1 << 14  # of cudaDeviceProp, generously; it begins with the name
_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll")


class CudaRuntime:
    """The few calls of libcudart that a slot needs. Each raises MemoryError, or DeviceError with CUDA's own words."""

    def __init__(self) -> None:
        self._library = _load_library()
        self._locked: dict[int, int] = {}  # page-locked memory: address -> bytes
        self.capturing = threading.Lock()  # held while a graph is captured: no thread may lock pages meanwhile

    def use(self, device: int) -> None:
        """Make `device` the one that the calling thread speaks to."""
        self._call("cudaSetDevice", ctypes.c_int(device))

    def count(self) -> int:
        """How many GPUs there are."""
        count = ctypes.c_int()
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        return count.value

    def name(self, device: int) -> str:
        """What the vendor calls `device`."""
        properties = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", properties, ctypes.c_int(device))
        return properties.value.decode(errors="replace")

    def lock(self, pages: Array) -> bool:
        """Let every GPU read and write whole pages by itself, without the CPU. False where the system does not allow
        it: copies work all the same, by way of memory of CUDA's own.
        """
        start, size = pages.ctypes.data, pages.nbytes
        try:
            with self.capturing:
                self._call("cudaHostRegister", ctypes.c_void_p(start), ctypes.c_size_t(size), ctypes.c_uint(_PORTABLE))
        except (MemoryError, DeviceError):
            return False
        self._locked[start] = size
        return True

    def unlock(self, pages: Array) -> None:
        """Undo `lock`."""
        del self._locked[pages.ctypes.data]
        with self.capturing:
            self._call("cudaHostUnregister", ctypes.c_void_p(pages.ctypes.data))

    def reads(self, array: Array) -> bool:
        """Whether the GPU copies all of `array` by itself: one piece of what is page-locked."""
        start = array.ctypes.data
        end = start + array.nbytes
        return array.flags.c_contiguous and any(
            first <= start and end <= first + size for first, size in list(self._locked.items())
        )

    def zero(self, pointer: int, size: int, stream: ctypes.c_void_p) -> None:
        """Queue `size` zeros for the GPU's memory at `pointer`."""
        arguments = ctypes.c_void_p(pointer), ctypes.c_int(0), ctypes.c_size_t(size), stream
        self._call("cudaMemsetAsync", *arguments)

    def stream(self) -> ctypes.c_void_p:
        """A queue of copies that waits for no other queue; it lives as long as what is returned."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_NON_BLOCKING))
        weakref.finalize(stream, self._library.cudaStreamDestroy, ctypes.c_void_p(stream.value))
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
        if code != 0:
            self._library.cudaGetLastError()  # else ONNX Runtime would find this error and take it for its own
        if code == _OUT_OF_MEMORY:
            raise MemoryError(name)
        if code != 0:
            self._library.cudaGetErrorString.restype = ctypes.c_char_p
            words = self._library.cudaGetErrorString(ctypes.c_int(code)) or b"unknown error"
            raise DeviceError(f"CUDA failed: {name}: {words.decode()}", remedy="see nvidia-smi and `yt8m doctor`")


def _pages(size: int) -> Array:
    """Zeroed memory of at least `size` bytes that shares no page with other memory: none may be locked twice.

    A process that is forked has none of it. Were a page copied as soon as one of the two writes to it, as others are,
    the GPU might read the old one. Where the system has huge pages it takes 1 ms and not 11 to find 19 MB.
    """
    size = max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE
    try:
        if sys.platform == "linux":
            memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            memory.madvise(mmap.MADV_DONTFORK)
            with suppress(OSError):  # a kernel without huge pages
                memory.madvise(mmap.MADV_HUGEPAGE)
        else:
            memory = mmap.mmap(-1, size)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError(f"{size:,} bytes of main memory") from None
        raise
    pages = np.frombuffer(memory, np.uint8)
    pages.fill(0)  # found here, by the thread that asks, and not while they are locked
    return pages


def _load_library() -> Any:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise DeviceError(f"none of {', '.join(_LIBRARIES)} is there", remedy=install_command("gpu"))


@dataclass(frozen=True)
class Buffers:
    """What a slot holds for one batch: per input and output a tensor on the GPU, and a page-locked array, which inputs
    have from the first batch on of which they are copied.
    """

    arrays: dict[str, Array]
    tensors: dict[str, Any]  # onnxruntime.OrtValue
    binding: Any  # onnxruntime.IOBinding
    options: Any  # onnxruntime.RunOptions: with CUDA graphs, that of these tensors


class OwnThread:
    """A thread that does what it is asked to, one call after the other. It ends once this object is gone."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        calls = self._calls  # and not this object, which the thread would keep
        if not start_threads(1, lambda: _answer(calls), name):
            raise no_thread()
        weakref.finalize(self, self._calls.put, None)

    def do(self, function: Callable[..., R], *arguments: Any) -> R:
        """`function(*arguments)`, there; waits for it. Raises what it raises."""
        result: R = self.later(function, *arguments).result()
        return result

    def later(self, function: Callable[..., R], *arguments: Any) -> Future[R]:
        """`function(*arguments)`, there, after what was asked for before; does not wait for it."""
        call = _Call(function, arguments)
        self._calls.put(call)
        return call.result


@dataclass(frozen=True)
class _Call:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    result: Future[Any] = field(default_factory=Future)


def _answer(calls: queue.SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        try:
            call.result.set_result(call.function(*call.arguments))
        except BaseException as error:
            call.result.set_exception(error)
        del call  # what it holds may be the last reference to the thread's owner


class CudaSlot:
    """A session on one GPU, and buffers for one batch. One caller at a time may use it."""

    def __init__(self, runtime: Any, file: ModelFile, gpu: int, cuda: CudaRuntime, options: GpuOptions) -> None:
        """Open the model on GPU number `gpu`.

        Args:
            runtime: the module onnxruntime.

        Raises what `scorer.model.runtime.open_cuda` raises.
        """
        self._runtime = runtime
        self._gpu = gpu
        self._cuda = cuda
        self._thread = OwnThread(f"cuda:{gpu}")
        self._session: Session = self._thread.do(open_cuda, runtime, file, gpu, options)
        self._stream: ctypes.c_void_p | None = None
        self._buffers: Buffers | None = None
        self._dtype: Any = np.float32  # of the features that the model reads
        self._copy: Callable[[Array, Array], None] = np.copyto
        self._labels = self._fits = 0

    def contract(self, path: str) -> Contract:
        """What the model promises. Raises what `scorer.model.contract.read_contract` raises, and DeviceError."""
        with device_errors(f"cuda:{self._gpu}"):
            return self._thread.do(read_contract, path, Uncaptured(self._session, self._graph(_NO_GRAPH)))

    def fit(self, contract: Contract, size: int, k: int) -> None:
        """Make buffers for batches of `size` and `k` labels each, and run once: what memory that takes is taken now.

        Raises:
            MemoryError: the GPU has not enough.
        """
        self._thread.do(self._empty)
        self._thread.do(self._fit, contract, size, k)

    def buffer(self, shape: tuple[int, int]) -> NDArray[np.float32]:
        """See `scorer.model.predictor.Predictor.buffer`; page-locked, if the model reads float32."""
        if self._dtype is not np.float32:
            return np.empty(shape, np.float32)
        pages = _pages(math.prod(shape) * np.dtype(np.float32).itemsize)
        return self._thread.do(self._locked, pages, shape, np.float32)

    def run(self, features: Features, k: int, embeddings: bool) -> Outcome:
        """Scores and labels (n, k) of n videos; size and k at most what the slot was fitted for."""
        return self._thread.do(self._run, features, k, embeddings)

    def _empty(self) -> None:
        """Give the buffers back: their pages are unlocked by the thread's next calls."""
        self._buffers = None

    def _page_locked(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """A zeroed array that the GPU reads and writes by itself, as far as the system allows."""
        return self._locked(_pages(math.prod(shape) * np.dtype(dtype).itemsize), shape, dtype)

    def _locked(self, pages: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        """An array in `pages`, which are locked until it is gone. By this thread: the one whose array goes may speak to
        another GPU, and to speak to one opens it.
        """
        array = np.frombuffer(pages.data, dtype, math.prod(shape))  # not of the array: views of it would keep only that
        if self._cuda.lock(pages):
            weakref.finalize(array, self._thread.later, self._cuda.unlock, pages)
        return array.reshape(shape)

    def _fit(self, contract: Contract, size: int, k: int) -> None:
        self._cuda.use(self._gpu)
        self._stream = self._stream or self._cuda.stream()
        self._labels, self._dtype = contract.labels, contract.dtype
        self._copy = Fp16Conversion(self._runtime).copy if self._dtype is np.float16 else np.copyto
        columns = min(k + SPARE, self._labels)
        shapes: dict[str, tuple[tuple[int, int], Any]] = {
            name: ((size, width), contract.dtype) for name, width in contract.inputs.items()
        }
        shapes |= {"scores": ((size, columns), np.float32), "labels": ((size, columns), np.int64)}
        if contract.embeddings:
            shapes[EMBEDDINGS] = ((size, contract.embeddings), np.float32)
        make = self._runtime.OrtValue.ortvalue_from_shape_and_type
        tensors = {name: make(list(shape), kind, "cuda", self._gpu) for name, (shape, kind) in shapes.items()}
        arrays = {name: self._page_locked(*shapes[name]) for name in shapes if name not in contract.inputs}
        tensors["k"] = self._runtime.OrtValue.ortvalue_from_numpy(np.array([columns], np.int64))
        self._fits += 1
        buffers = Buffers(arrays, tensors, self._bind(tensors), self._graph(self._fits))
        for name, width in contract.inputs.items():
            self._cuda.zero(tensors[name].data_ptr(), size * width * np.dtype(self._dtype).itemsize, self._stream)
        self._cuda.wait(self._stream)
        with self._cuda.capturing:
            self._session.run_with_iobinding(buffers.binding, buffers.options)
        self._buffers = buffers

    def _run(self, features: Features, k: int, embeddings: bool) -> Outcome:
        buffers, stream = self._buffers, self._stream
        if buffers is None or stream is None:
            raise DeviceError(f"cuda:{self._gpu} could not be set up")
        videos = len(next(iter(features.values())))
        for name, values in features.items():
            self._cuda.upload(buffers.tensors[name].data_ptr(), self._staged(buffers, name, values), stream)
        self._cuda.wait(stream)
        self._session.run_with_iobinding(buffers.binding, buffers.options)
        for name in outputs(embeddings):
            self._cuda.download(buffers.arrays[name], buffers.tensors[name].data_ptr(), stream)
        self._cuda.wait(stream)
        found = Predictions(*(buffers.arrays[name][:videos] for name in OUTPUTS))
        settled = settle(found, k, self._labels, lambda: self._every_label(buffers))
        return settled, buffers.arrays[EMBEDDINGS][:videos].copy() if embeddings else None

    def _staged(self, buffers: Buffers, name: str, values: Array) -> Array:
        """Features as the model reads them: where they are, if that is page-locked memory, else a copy in such."""
        if values.dtype == self._dtype and self._cuda.reads(values):
            return values
        if name not in buffers.arrays:
            buffers.arrays[name] = self._page_locked(tuple(buffers.tensors[name].shape()), self._dtype)
        staged = buffers.arrays[name][: len(values)]
        self._copy(staged, values)
        return staged

    def _every_label(self, buffers: Buffers) -> Predictions:
        """All labels, (size, labels), of the features that the last run left on the GPU."""
        every = self._runtime.OrtValue.ortvalue_from_numpy(np.array([self._labels], np.int64))
        binding = self._bind({**buffers.tensors, "k": every}, but=outputs(True))
        for name in OUTPUTS:
            binding.bind_output(name)  # in main memory
        self._session.run_with_iobinding(binding, self._graph(_NO_GRAPH))
        return Predictions(*binding.copy_outputs_to_cpu())

    def _graph(self, number: int) -> Any:
        """The options of a run that, where CUDA graphs are used, captures or replays the one of that number."""
        options = self._runtime.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(number))
        return options

    def _bind(self, tensors: Mapping[str, Any], but: Sequence[str] = ()) -> Any:
        """A binding of every tensor, which must outlive it: older ONNX Runtimes keep no reference."""
        binding = self._session.io_binding()
        for name, tensor in tensors.items():
            bind = binding.bind_ortvalue_output if name in outputs(True) else binding.bind_ortvalue_input
            if name not in but:
                bind(name, tensor)
        return binding


class Uncaptured:
    """A session of which no run is captured."""

    def __init__(self, session: Session, options: Any) -> None:
        """options: an onnxruntime.RunOptions that says so."""
        self._session, self._options = session, options

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run(self, names: Sequence[str], features: Mapping[str, Array]) -> Any:
        """As the session's."""
        return self._session.run(names, features, self._options)
