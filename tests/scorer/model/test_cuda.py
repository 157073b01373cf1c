"""GPU slots on a machine without a GPU: ONNX Runtime's CPU stands in for it behind the calls that CUDA would get.

What is tested is this project's part: buffers, copies, padding, slots, memory that runs out, errors that must not turn
into answers from the CPU. benchmarks/gpu.py runs the same code on a GPU.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import mmap
import re
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import benchmarks.gpu
import scorer.model.cuda
import scorer.model.model
from scorer.api import Scorer
from scorer.errors import DeviceError, Hint
from scorer.model.model import Model
from scorer.model.ties import SPARE
from tests.onnx_models import save_model
from tests.scorer.fakes import write_shards
from tests.scorer.model.test_model import SMALL, Features, features, rows, same

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Cudart:
    """libcudart over the machine's own memory. `failing`: a call that returns its error code.

    A copy is made as late as it may be: when the thread that queued it waits.
    """

    def __init__(self) -> None:
        self.locked: set[int] = set()
        self.uploaded_from: list[int] = []
        self._queued: dict[int, list[tuple[Any, Any, int]]] = {}  # by thread
        self.devices: list[int] = []
        self.copied: list[int] = []
        self.failing: dict[str, int] = {}
        self.errors_taken = 0
        self.names: dict[int, bytes] = {}

    def __getattr__(self, name: str) -> Any:  # the calls that need do nothing here
        if not name.startswith("cuda"):
            raise AttributeError(name)
        return lambda *arguments: self.failing.get(name, 0)

    def cudaGetLastError(self) -> int:
        self.errors_taken += 1
        return 0

    def cudaSetDevice(self, device: ctypes.c_int) -> int:
        self.devices.append(device.value)
        return self.failing.get("cudaSetDevice", 0)

    def cudaGetDeviceCount(self, count: Any) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int)).contents.value = 3
        return 0

    def cudaGetDeviceProperties(self, properties: Any, device: ctypes.c_int) -> int:
        properties.value = self.names.get(device.value, b"stand-in")
        return 0

    def cudaHostRegister(self, pointer: ctypes.c_void_p, size: ctypes.c_size_t, flags: Any) -> int:
        assert pointer.value is not None
        assert pointer.value % mmap.PAGESIZE == 0
        assert size.value % mmap.PAGESIZE == 0
        if code := self.failing.get("cudaHostRegister", 0):
            return code
        self.locked.add(pointer.value)
        return 0

    def cudaHostUnregister(self, pointer: ctypes.c_void_p) -> int:
        assert pointer.value is not None
        self.locked.remove(pointer.value)
        return 0

    def cudaMemcpyAsync(self, to: Any, source: Any, size: ctypes.c_size_t, kind: Any, stream: Any) -> int:
        self._queued.setdefault(threading.get_ident(), []).append((to, source, size.value))
        self.copied.append(size.value)
        if kind.value == 1:
            self.uploaded_from.append(source.value)
        return self.failing.get("cudaMemcpyAsync", 0)

    def cudaStreamSynchronize(self, stream: Any) -> int:
        for to, source, size in self._queued.pop(threading.get_ident(), []):
            ctypes.memmove(to, source, size)
        return 0

    def cudaMemsetAsync(self, pointer: Any, value: ctypes.c_int, size: ctypes.c_size_t, stream: Any) -> int:
        ctypes.memset(pointer, value.value, size.value)
        return 0

    class cudaGetErrorString:
        """A function with an attribute, as ctypes has them."""

        restype: Any = None

        def __new__(cls, code: ctypes.c_int) -> Any:
            return f"error {code.value}".encode()


class Session:
    """A session on the CPU that says it is on a GPU."""

    def __init__(self, gpu: FakeGpu, session: Any, choices: dict[str, str]) -> None:
        self._gpu, self._session, self._choices = gpu, session, choices

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_providers(self) -> list[str]:
        return self._gpu.opened_as

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {CUDA: self._choices}

    def get_provider_graph_assignment_info(self) -> list[Any]:
        nodes = [SimpleNamespace(op_type=kind) for kind in self._gpu.on_cpu]
        return [SimpleNamespace(ep_name=CPU, get_nodes=lambda: nodes)]

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        if self._gpu.run_error is not None:
            raise self._gpu.run_error
        self._session.run_with_iobinding(binding)


class FakeGpu:
    """onnxruntime as it would be with CUDA, and what a test wants to go wrong.

    on_cpu: operators without a CUDA kernel. most_rows: larger tensors do not fit. run_error: what a bound run raises.
    """

    __version__, __file__ = "1.99", "/absent/__init__.py"
    SessionOptions, RunOptions = onnxruntime.SessionOptions, onnxruntime.RunOptions

    def __init__(self) -> None:
        self.opened_as = [CUDA, CPU]
        self.choices: list[dict[str, str]] = []
        self.on_cpu: list[str] = []
        self.most_rows = 1 << 30
        self.run_error: Exception | None = None
        self.OrtValue = SimpleNamespace(
            ortvalue_from_shape_and_type=self._tensor,
            ortvalue_from_numpy=lambda values, *place: onnxruntime.OrtValue.ortvalue_from_numpy(values),
        )

    def get_available_providers(self) -> list[str]:
        return [CUDA, CPU]

    def InferenceSession(self, model: Any, options: Any, providers: Any, enable_fallback: int) -> Any:
        assert enable_fallback == 0
        session = onnxruntime.InferenceSession(model, options, providers=[CPU])
        if providers == [CPU]:
            return session
        [(name, choices)] = providers
        assert name == CUDA
        self.choices.append(choices)
        return Session(self, session, choices)

    def _tensor(self, shape: list[int], kind: Any, device: str, number: int) -> Any:
        assert device == "cuda"
        if shape[0] > self.most_rows:
            raise RuntimeError("CUDA failure 2: out of memory ; GPU=0")
        return onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, kind, "cpu", 0)


@pytest.fixture
def cudart(monkeypatch: pytest.MonkeyPatch) -> Cudart:
    library = Cudart()
    monkeypatch.setattr(scorer.model.cuda, "_load_library", lambda: library)
    return library


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, cudart: Cudart) -> Iterator[FakeGpu]:
    gpu = FakeGpu()
    monkeypatch.setattr(scorer.model.model, "import_runtime", lambda: gpu)
    yield gpu
    gc.collect()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return save_model(tmp_path / "m.onnx", **SMALL, hidden=16)


@pytest.fixture
def given() -> Features:
    return features(300)


@pytest.mark.parametrize("k", [1, 10, 30])
@pytest.mark.parametrize("videos", [1, 17, 64, 65, 300])
def test_answers_are_the_cpus(gpu: FakeGpu, path: str, given: Features, videos: int, k: int) -> None:
    given = rows(given, slice(videos))
    model = Model.open(path, batch_size=64)
    assert (model.facts.device, model.facts.provider, model.slots, model.facts.reason) == (
        "cuda:0",
        CUDA,
        3,
        "CUDA opens here",
    )
    assert same(model.run(given, k), Model.open(path, device="cpu").run(given, k))


def test_half_precision_features_are_sent_as_such(
    gpu: FakeGpu, cudart: Cudart, tmp_path: Path, given: Features
) -> None:
    path = save_model(tmp_path / "half.onnx", **SMALL, half=True)
    model = Model.open(path, batch_size=64)
    cudart.copied.clear()
    answers = model.run(rows(given, slice(64)))
    assert cudart.copied[:2] == [64 * 8 * 2, 64 * 4 * 2]
    assert same(answers, Model.open(path, device="cpu").run(rows(given, slice(64))))


def test_only_k_scores_and_labels_and_a_few_more_come_back(
    gpu: FakeGpu, cudart: Cudart, path: str, given: Features
) -> None:
    model = Model.open(path, batch_size=64)
    cudart.copied.clear()
    model.run(rows(given, slice(10)))
    assert cudart.copied == [10 * 8 * 4, 10 * 4 * 4, 64 * (10 + SPARE) * 4, 64 * (10 + SPARE) * 8]


@pytest.mark.parametrize("videos", [1, 64, 150])
def test_embeddings_are_the_cpus_and_come_back_where_they_are_asked_for(
    gpu: FakeGpu, cudart: Cudart, tmp_path: Path, given: Features, videos: int
) -> None:
    path = save_model(tmp_path / "e.onnx", **SMALL, hidden=20, embeddings=True)
    model, given = Model.open(path, batch_size=64), rows(given, slice(videos))
    predictions, embeddings = model.embed(given)
    expected, own = Model.open(path, device="cpu").embed(given)
    assert same(predictions, expected)
    assert embeddings.tobytes() == own.tobytes()
    assert 64 * 20 * 4 in cudart.copied
    cudart.copied.clear()
    assert same(model.run(given), expected)
    assert 64 * 20 * 4 not in cudart.copied
    model.embed({name: -values for name, values in given.items()})
    assert embeddings.tobytes() == own.tobytes(), "no view of a buffer that is used again"


def test_equal_scores_at_the_border_leave_embeddings_as_they_are(gpu: FakeGpu, tmp_path: Path) -> None:
    path = save_model(tmp_path / "e.onnx", **SMALL, hidden=16, embeddings=True)
    still = {name: np.zeros((5, width), np.float32) for name, width in SMALL["inputs"].items()}
    one, other = Model.open(path, batch_size=8).embed(still, k=3), Model.open(path, device="cpu").embed(still, k=3)
    assert same(one[0], other[0])
    assert one[1].tobytes() == other[1].tobytes()


def test_a_small_batch_leaves_nothing_of_a_large_one_behind(gpu: FakeGpu, path: str, given: Features) -> None:
    model = Model.open(path, batch_size=64)
    expected = Model.open(path, device="cpu").run(given)
    for piece in (slice(0, 64), slice(64, 67), slice(67, 131), slice(131, 132)):
        assert same(model.run(rows(given, piece)), (expected[0][piece], expected[1][piece]))


def test_many_threads_share_the_slots(gpu: FakeGpu, path: str, given: Features) -> None:
    model = Model.open(path, batch_size=16)
    expected = Model.open(path, device="cpu").run(given)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: model.run(rows(given, slice(i, i + 11))), range(0, 300, 11)))
    assert same((np.concatenate([a for a, _ in answers]), np.concatenate([b for _, b in answers])), expected)


def test_exact_arithmetic_unless_tf32_is_asked_for(gpu: FakeGpu, path: str) -> None:
    assert Model.open(path).facts.runtime == "onnxruntime 1.99 on stand-in, batches of 4,096"
    assert {choices["use_tf32"] for choices in gpu.choices} == {"0"}
    gpu.choices.clear()
    assert Model.open(path, tf32=True).facts.runtime == "onnxruntime 1.99 TF32 on stand-in, batches of 4,096"
    assert {choices["use_tf32"] for choices in gpu.choices} == {"1"}
    assert Model.open(path, device="cpu", tf32=True).facts.runtime == "onnxruntime 1.99"


def test_several_gpus_have_a_session_per_slot(gpu: FakeGpu, cudart: Cudart, path: str, given: Features) -> None:
    model = Model.open(path, device="cuda:2,0", batch_size=16)
    assert (model.facts.device, model.slots) == ("cuda:0,2", 6)
    assert [choices["device_id"] for choices in gpu.choices] == ["0", "0", "0", "2", "2", "2"]
    assert same(model.run(given), Model.open(path, device="cpu").run(given))
    assert cudart.devices == [0, 0, 0, 2, 2, 2]


def test_all_gpus_and_none_that_is_not_there(gpu: FakeGpu, path: str) -> None:
    assert Model.open(path, device="cuda:all").facts.device == "cuda:0,1,2"
    with pytest.raises(DeviceError, match="cuda:1,3 is not there: CUDA sees 3 GPUs; see nvidia-smi"):
        Model.open(path, device="cuda:1,3")


def test_gpus_of_several_kinds_are_an_error(gpu: FakeGpu, cudart: Cudart, path: str) -> None:
    """Whichever was free would decide a row's last digits."""
    cudart.names[2] = b"another"
    message = "cuda:0,1,2 are GPUs of several kinds, another and stand-in, whose .*; name those of one kind"
    with pytest.raises(DeviceError, match=message):
        Model.open(path, device="cuda:all")
    assert Model.open(path, device="cuda:0,1").facts.device == "cuda:0,1"


def test_a_provider_that_quietly_is_not_there_is_an_error(gpu: FakeGpu, path: str) -> None:
    gpu.opened_as = [CPU]
    with pytest.raises(DeviceError, match=r"cuda:0 does not open: .*libonnxruntime_providers_cuda.so.*; `yt8m doctor`"):
        Model.open(path, device="cuda")
    model = Model.open(path, device="auto")
    assert (model.facts.device, model.facts.provider) == ("cpu", CPU)
    assert model.facts.reason.startswith("cuda:0 does not open: ")


def test_heavy_operators_left_to_the_cpu_are_an_error(gpu: FakeGpu, path: str) -> None:
    gpu.on_cpu = ["Shape", "MatMulInteger"]
    with pytest.raises(DeviceError, match="no kernel for MatMulInteger; use an fp16 model"):
        Model.open(path, device="cuda:0")
    assert Model.open(path).facts.device == "cpu"
    gpu.on_cpu = ["LSTM"]
    with pytest.raises(DeviceError, match=r"no kernel for LSTM$"):
        Model.open(path, device="cuda:0")
    gpu.on_cpu = ["Shape", "Gather"]
    assert Model.open(path).facts.device == "cuda:0"


def test_a_device_that_fails_in_a_run_is_an_error_and_no_answer(gpu: FakeGpu, path: str, given: Features) -> None:
    model = Model.open(path, batch_size=64)
    gpu.run_error = RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure")
    with pytest.raises(DeviceError, match="cuda:0 failed: CUDA failure 719"):
        model.run(given)


def test_a_copy_that_fails_is_an_error(gpu: FakeGpu, cudart: Cudart, path: str, given: Features) -> None:
    model = Model.open(path, batch_size=64)
    cudart.failing["cudaMemcpyAsync"] = 700
    with pytest.raises(DeviceError, match="CUDA failed: cudaMemcpyAsync: error 700"):
        model.run(rows(given, slice(64)))
    assert cudart.errors_taken == 1, "ONNX Runtime would find that error and report it as its own"


def test_memory_that_runs_out_while_opening_halves_the_batch(gpu: FakeGpu, path: str, given: Features) -> None:
    gpu.most_rows = 40
    model = Model.open(path, batch_size=256)
    assert (model.batch_size, model.notes) == (32, ["memory ran out: batches of 32 instead of 256"])
    assert same(model.run(given), Model.open(path, device="cpu").run(given))


def test_memory_that_runs_out_in_a_run_is_an_error(gpu: FakeGpu, path: str, given: Features) -> None:
    """A smaller batch would give other bits from there on."""
    model = Model.open(path, batch_size=64)
    gpu.run_error = RuntimeError("Failed to allocate memory for requested buffer of size 123")
    with pytest.raises(DeviceError, match="cuda:0 ran out of memory in batches of 64; free some") as caught:
        model.run(given)
    assert caught.value.hints == (Hint.SMALLER_BATCH,)
    gpu.run_error = None
    assert same(model.run(given), Model.open(path, device="cpu").run(given))


def test_main_memory_that_runs_out_halves_the_batch(
    gpu: FakeGpu, path: str, given: Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = mmap.mmap

    def limited(number: int, size: int, **options: Any) -> mmap.mmap:
        if number == -1 and size > 1 << 12:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return pages(number, size, **options)

    monkeypatch.setattr(mmap, "mmap", limited)
    assert Model.open(path, device="cuda", batch_size=128).batch_size == 32


def test_auto_falls_back_where_no_batch_fits(gpu: FakeGpu, path: str) -> None:
    gpu.most_rows = 0
    model = Model.open(path)
    assert (model.facts.device, model.facts.reason) == ("cpu", "cuda:0 has not enough memory for one video")


def test_no_room_for_one_video_is_an_error(gpu: FakeGpu, path: str) -> None:
    gpu.most_rows = 0
    with pytest.raises(DeviceError, match="cuda:0 has not enough memory for one video"):
        Model.open(path, device="cuda")


def test_page_locked_memory_is_given_back(gpu: FakeGpu, cudart: Cudart, path: str, given: Features) -> None:
    """By the slots' own threads, soon after it is gone."""
    model = Model.open(path, batch_size=64)
    assert len(cudart.locked) == 3 * 2, "for answers: nothing was copied yet"
    model.run(given, 20)
    gc.collect()
    assert 3 * 2 < len(cudart.locked) <= 3 * 4
    buffer = model.buffer((64, 8))
    held = len(cudart.locked)
    rows = buffer[3:7]
    del buffer
    assert len(cudart.locked) == held
    del rows, model
    gc.collect()
    while cudart.locked:
        time.sleep(0.001)


def test_features_are_uploaded_from_where_they_are_if_that_is_page_locked(
    gpu: FakeGpu, cudart: Cudart, path: str, given: Features
) -> None:
    """Recognised by where they lie, whole and in one piece; of others a copy is uploaded."""
    assert Model.open(path, batch_size=64).buffer((0, 8)).shape == (0, 8)
    model, expected = Model.open(path, batch_size=64), Model.open(path, device="cpu")
    buffers = {name: model.buffer((300, width)) for name, width in model.facts.inputs.items()}
    for name, values in given.items():
        buffers[name][:] = values
    cudart.uploaded_from.clear()
    assert same(model.run(buffers), expected.run(given))
    assert {*cudart.uploaded_from} == {
        values[first:].ctypes.data for values in buffers.values() for first in range(0, 300, 64)
    }
    assert same(model.run(rows(buffers, slice(7, 40))), expected.run(rows(given, slice(7, 40))))
    assert {*cudart.uploaded_from[-2:]} == {values[7:].ctypes.data for values in buffers.values()}
    cudart.uploaded_from.clear()
    for which in (slice(None, 64, 2), slice(63, None, -1), [5, 3, 8]):
        assert same(model.run(rows(buffers, which)), expected.run(rows(given, which)))
    for kind in (np.float64, np.float16, ">f4", np.int8):
        other = {name: values[:64].astype(kind) for name, values in given.items()}
        assert same(model.run(other), expected.run({name: values.astype(np.float32) for name, values in other.items()}))
    mixed = {name: np.asfortranarray(values[:64]) for name, values in buffers.items()}
    assert same(model.run(mixed), expected.run(rows(given, slice(64))))
    own = {values.ctypes.data for values in buffers.values()}
    assert not own & {*cudart.uploaded_from}
    assert {*cudart.uploaded_from} <= cudart.locked - own


def test_an_array_that_only_begins_in_page_locked_memory_is_copied(cudart: Cudart) -> None:
    cuda, pages = scorer.model.cuda.CudaRuntime(), np.frombuffer(mmap.mmap(-1, 3 * mmap.PAGESIZE), np.uint8)
    assert cuda.lock(pages[mmap.PAGESIZE : -mmap.PAGESIZE])
    first, after = mmap.PAGESIZE, 2 * mmap.PAGESIZE
    assert cuda.reads(pages[first:after])
    assert not cuda.reads(pages[first - 1 : after])
    assert not cuda.reads(pages[first : after + 1])
    assert not cuda.reads(pages[first:after:2])
    cuda.unlock(pages[first:after])
    assert not cuda.reads(pages[first:after])


@pytest.mark.parametrize("code", [0, 1, 2])
@pytest.mark.parametrize("half", [False, True])
def test_a_job_gives_the_cpus_rows_whether_pages_can_be_locked_or_not(
    gpu: FakeGpu, cudart: Cudart, tmp_path: Path, code: int, half: bool
) -> None:
    """Many batches in a few buffers, which are filled again as soon as a run returned."""
    inputs = {"mean_rgb": 4, "mean_audio": 2}
    path = save_model(tmp_path / "m.onnx", inputs=inputs, labels=30, half=half)
    written = write_shards(tmp_path / "shards", [300, 1, 200])
    cudart.failing["cudaHostRegister"] = code
    scorer = Scorer(path, device="cuda", batch_size=8)
    assert [*scorer.predict(written)] == [*Scorer(path, device="cpu").predict(written)]
    assert bool(cudart.locked) == (code == 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no process is forked with page-locked memory")
def test_a_forked_process_has_no_page_locked_memory(gpu: FakeGpu, path: str) -> None:
    """It would have the page that the GPU reads, and this process another, as soon as this one writes to it."""
    buffer = Model.open(path, batch_size=64).buffer((1 << 10, 1 << 10))
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(bounds[1], 16) <= buffer.ctypes.data < int(bounds[2], 16)
        elif found and line.startswith("VmFlags"):
            assert "dc" in line.split(), "do not copy"
            return
    raise AssertionError("no such memory")


def test_features_for_half_precision_lie_in_ordinary_memory(
    gpu: FakeGpu, cudart: Cudart, tmp_path: Path, given: Features
) -> None:
    """They are converted from there, and from wherever else they are."""
    path = save_model(tmp_path / "half.onnx", **SMALL, half=True)
    model, given = Model.open(path, batch_size=64), rows(given, slice(64))
    locked = len(cudart.locked)
    assert model.buffer((64, 8)).dtype == np.float32
    assert len(cudart.locked) == locked
    slot: Any = model._pool._buffer.__self__  # type: ignore[attr-defined]
    features = {name: slot._page_locked(values.shape, np.float32) for name, values in given.items()}
    for name, values in given.items():
        features[name][:] = values
    assert same(model.run(features), Model.open(path, device="cpu").run(given))


def test_without_libcudart_the_package_that_has_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer.model.cuda, "_LIBRARIES", ("libcudart.so.absent",))
    with pytest.raises(DeviceError, match=r"libcudart.so.absent is there; pip install 'yt8m-edge\[gpu\]'"):
        scorer.model.cuda.CudaRuntime()


def test_the_benchmark_refuses_a_machine_without_a_gpu(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if CUDA in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    monkeypatch.setattr(sys, "argv", ["gpu", "--models", path])
    assert benchmarks.gpu.main() == DeviceError.exit_code
    assert "no CUDA provider" in capsys.readouterr().err
