"""The CUDA slots on the real CUDA provider, which runs on stand-ins for NVIDIA's libraries (tests/cuda_stub)."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from scorer.errors import DeviceError
from scorer.system.cores import usable_cores
from tests.cuda_stub import ROOT, Call, CudaStub, StubRun, needs_provider
from tests.onnx_models import save_model

pytestmark = needs_provider

SLOTS, INPUTS = 3, 2
LOCKED_AT_FIRST = 2 * SLOTS  # arrays for each slot's scores and labels
LEAKS = {"cudaMalloc": "cudaFree", "cudaStreamCreate": "cudaStreamDestroy", "cublasCreate": "cublasDestroy",
         "cudnnCreate": "cudnnDestroy", "cudaHostRegister": "cudaHostUnregister",
         "cudaMallocHost": "cudaFreeHost", "cudaEventCreate": "cudaEventDestroy"}  # fmt: skip

RUN = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from scorer.model.find import BUNDLED
from scorer.model.model import Model

model = Model.open(str(BUNDLED), device="cuda", batch_size=64)
rows = {name: np.zeros((64, width), np.float32) for name, width in model.facts.inputs.items()}
many = {name: np.zeros((300, width), np.float32) for name, width in model.facts.inputs.items()}
runs, large = map(int, sys.argv[1:])
with ThreadPoolExecutor(6) as threads:
    answers = list(threads.map(lambda _: model.run(rows).labels.tolist(), range(runs)))
answers += [model.run(many).labels.tolist() for _ in range(large)]
print({tuple(row) for labels in answers for row in labels} == {tuple(range(10))}, model.batch_size)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def made(done: StubRun) -> Counter[str]:
    """How often each thing was made that has to be given back."""
    return Counter(call.name for call in done.log if call.name in LEAKS)


def score(
    stub: CudaStub, output: Path, *arguments: str, failing: str = "", script: str = "", **variables: str
) -> StubRun:
    """script: what is to run `score` instead of the command itself."""
    shards = sorted(map(str, (ROOT / "samples").glob("*.tfrecord")))
    command = [*(("-c", script) if script else ("-m", "scorer")), *shards, "-o", str(output), "--device", "cuda"]
    return stub.run(*command, *arguments, failing=failing, **variables)


def test_a_job_runs_on_cuda_and_prints_nothing_but_its_summary(cuda_stub: CudaStub, tmp_path: Path) -> None:
    done = score(cuda_stub, tmp_path / "preds.csv", "--batch-size", "32")
    assert (done.returncode, done.stdout) == (0, "")
    assert "cuda:0, CUDAExecutionProvider: asked for" in done.stderr
    assert "CUDA computes this int8 model in float32; one of fp16 is faster there" in done.stderr
    assert "onnxruntime" not in done.stderr
    quiet = score(cuda_stub, tmp_path / "preds.csv", "--quiet")
    assert (quiet.returncode, quiet.stderr) == (0, "")
    record = json.loads((tmp_path / "preds.csv.done.json").read_text())
    assert record["options"]["provider"] == "CUDAExecutionProvider"
    assert record["options"]["runtime"].endswith(" on CUDA stub, batches of 4,096")


def test_a_slot_has_one_thread_and_its_handles_are_made_once(cuda_stub: CudaStub, tmp_path: Path) -> None:
    few = score(cuda_stub, tmp_path / "few.csv", "--batch-size", "512")
    many = score(cuda_stub, tmp_path / "many.csv", "--batch-size", "8")
    assert len(many.calls("cudaLaunchKernel")) > 3 * len(few.calls("cudaLaunchKernel"))
    for done in (few, many):
        assert done.returncode == 0
        assert not done.calls("FORBIDDEN")
        assert not done.calls("cudaStreamBeginCapture")
        kernels = {call.fields["kernel"] for call in done.calls("cudaLaunchKernel")}
        assert not [name for name in kernels if "DequantizeLinearKernelAxis" in name], "weights, which do not change"
        handles = Counter(call.thread for call in done.calls("cublasCreate"))
        assert len(handles) == SLOTS
        assert set(handles.values()) == {2}, "the session's and its thread's"
        assert {call.thread for call in done.calls("cudaLaunchKernel")} == set(handles)
        assert {call.thread for call in done.calls("cudaMemcpyAsync")} <= set(handles)
        assert made(done)["cudaStreamCreate"] == 2 * SLOTS


GRAPHED = """
import sys
from scorer.cli.score import main
from scorer.model.model import Model

opened = Model.open
Model.open = lambda *given, **options: opened(*given, **options, cuda_graphs=True)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("labels", ["10", "20"])
def test_with_cuda_graphs_each_slot_captures_its_own_while_it_is_fitted(
    cuda_stub: CudaStub, tmp_path: Path, labels: str
) -> None:
    """Again for more labels than it was fitted for first; what a job needs beside it is never captured."""
    options = "--batch-size", "8", "--top-k", labels
    plain = score(cuda_stub, tmp_path / "plain.csv", *options)
    done = score(cuda_stub, tmp_path / "graphs.csv", *options, script=GRAPHED)
    assert (plain.returncode, done.returncode) == (0, 0), done.stderr
    assert (tmp_path / "graphs.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()
    assert not done.calls("FORBIDDEN")
    captures = Counter(call.thread for call in done.calls("cudaStreamBeginCapture"))
    assert len(captures) == SLOTS
    assert set(captures.values()) == {1 if labels == "10" else 2}
    replays = Counter(call.thread for call in done.calls("cudaGraphLaunch"))
    assert set(replays) == set(captures)
    assert replays.total() > 5 * SLOTS
    assert len(done.calls("cudaLaunchKernel")) < len(plain.calls("cudaLaunchKernel"))


def test_a_graph_that_cannot_be_captured_is_an_error(cuda_stub: CudaStub, tmp_path: Path) -> None:
    for number in (1, SLOTS):
        done = score(cuda_stub, tmp_path / "preds.csv", "--quiet", failing=f"capture:{number}:719", script=GRAPHED)
        assert done.returncode == DeviceError.exit_code
        assert re.fullmatch("score: cuda:0 failed: .*unspecified launch failure.*\n", done.stderr), done.stderr


FORBIDDEN = """
import ctypes
cuda = ctypes.CDLL("libcudart.so.13")
stream, memory, graph = (ctypes.c_void_p() for _ in range(3))
print(cuda.cudaStreamCreate(ctypes.byref(stream)), cuda.cudaStreamBeginCapture(stream, 0))
print(cuda.cudaMalloc(ctypes.byref(memory), ctypes.c_size_t(8)), cuda.cudaStreamEndCapture(stream, ctypes.byref(graph)))
"""


def test_the_stand_ins_refuse_what_cuda_forbids_during_a_capture(cuda_stub: CudaStub) -> None:
    done = cuda_stub.run("-c", FORBIDDEN)
    assert done.stdout.splitlines() == ["0 0", "900 901"]
    assert len(done.calls("FORBIDDEN")) == 1


def test_nothing_of_a_batch_is_copied_from_pageable_memory(cuda_stub: CudaStub) -> None:
    opened, done = cuda_stub.run("-c", RUN, "0", "0"), cuda_stub.run("-c", RUN, "100", "5")
    assert done.returncode == 0, done.stderr
    assert len(done.calls("cudaMemcpyAsync")) > len(opened.calls("cudaMemcpyAsync")) + 400
    pageable = [[call for call in each.log if call.fields.get("memory") == "pageable"] for each in (opened, done)]
    assert len(pageable[0]) == len(pageable[1])
    assert {call.name for call in done.log[len(opened.log) :]} >= {"cudaMemcpyAsync", "cudaLaunchKernel"}


COUNTED = """
import sys
import numpy as np
from scorer.cli.score import main
from scorer.model import cuda

copies, copied = [], np.copyto
np.copyto = lambda *given, **options: copies.append(given) or copied(*given, **options)
code = main([*sys.argv[1:], "--quiet"])
print(len(copies))
sys.exit(code)
"""


@pytest.mark.parametrize("gpus", ["cuda", "cuda:all"])
def test_features_are_decoded_into_the_memory_that_they_are_uploaded_from(
    cuda_stub: CudaStub, tmp_path: Path, gpus: str
) -> None:
    """A few page-locked buffers, however many batches, which all GPUs may read, and nothing is copied on the way."""
    options, slots = ("--batch-size", "4", "--device", gpus), SLOTS * (1 if gpus == "cuda" else 2)
    done = score(cuda_stub, tmp_path / "preds.csv", *options, script=COUNTED, CUDA_STUB_DEVICES="2")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    uploads, made = after_opening(done, slots)
    scored = json.loads((tmp_path / "preds.csv.done.json").read_text())["scored"]
    assert sum(int(call.fields["size"]) for call in uploads) == scored * (1024 + 128) * 4
    assert {call.fields["memory"] for call in uploads} == {"locked"}
    assert {call.fields["host"] for call in uploads} == {call.fields["at"] for call in made}
    assert len(uploads) > 40 * INPUTS
    assert len(made) <= INPUTS * (slots + usable_cores() + 1), "a batch for each thread, and one"
    assert {call.fields["flags"] for call in made} == {"1"}, "cudaHostRegisterPortable"


def after_opening(done: StubRun, slots: int = SLOTS) -> tuple[list[Call], list[Call]]:
    """Uploads to GPUs, and what was page-locked for features, once the slots were fitted."""
    registers = [at for at, call in enumerate(done.log) if call.name == "cudaHostRegister"]
    log = done.log[registers[2 * slots - 1] + 1 :]
    uploads = [call for call in log if call.name.startswith("cudaMemcpy") and call.fields["kind"] == "1"]
    return uploads, [call for call in log if call.name == "cudaHostRegister"]


def test_features_in_half_precision_are_converted_into_the_memory_that_they_are_uploaded_from(
    cuda_stub: CudaStub, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "half.onnx", half=True)
    options = "--batch-size", "8", "--model", model
    done = score(cuda_stub, tmp_path / "preds.csv", *options, script=COUNTED)
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    uploads, made = after_opening(done)
    scored = json.loads((tmp_path / "preds.csv.done.json").read_text())["scored"]
    assert sum(int(call.fields["size"]) for call in uploads) == scored * (1024 + 128) * 2
    assert {call.fields["host"] for call in uploads} == {call.fields["at"] for call in made}
    assert len(made) == SLOTS * INPUTS, "those of the slots"


@pytest.mark.parametrize("precision", ["single", "half"])
@pytest.mark.parametrize(
    ("failing", "lockable"),
    [*((f"register:{LOCKED_AT_FIRST + more}:{code}", 1 << 30) for more in (-1, 1, 2) for code in (1, 2)), ("", 0)],
)
def test_a_job_continues_where_no_more_pages_can_be_locked(
    cuda_stub: CudaStub, tmp_path: Path, precision: str, failing: str, lockable: int
) -> None:
    options = "--batch-size", "8", "--model", save_model(tmp_path / "m.onnx", half=precision == "half")
    score(cuda_stub, tmp_path / "expected.csv", *options)
    limit = {"CUDA_STUB_LOCKABLE": str(lockable)}
    done = score(cuda_stub, tmp_path / "preds.csv", *options, failing=failing, **limit)
    assert done.returncode == 0, done.stderr
    assert done.calls("FAILS") or not failing
    assert (tmp_path / "preds.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()


JOBS = """
import sys
from scorer.api import Scorer

opened = Scorer(device="cuda", batch_size=8)
locked = opened.model._pool._buffer.__self__._cuda._locked
first = len(locked)
for _ in range(int(sys.argv[1])):
    videos = len([*opened.predict(sys.argv[2:])])
    while len(locked) > first:  # the slot's thread does it
        pass
print(videos, first)
"""


def test_a_jobs_buffers_are_given_back_at_its_end(cuda_stub: CudaStub) -> None:
    shards = sorted(map(str, (ROOT / "samples").glob("*.tfrecord")))
    done = cuda_stub.run("-c", JOBS, "5", *shards)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1] == str(LOCKED_AT_FIRST)
    _, made = after_opening(done)
    given_back = Counter(call.fields["at"] for call in done.calls("cudaHostUnregister"))
    assert len(made) >= 5 * INPUTS
    assert not Counter(call.fields["at"] for call in made) - given_back


def test_copies_and_kernels_wait_for_each_other(cuda_stub: CudaStub) -> None:
    """They are queued in different streams, between which CUDA keeps no order."""
    done = cuda_stub.run("-c", RUN, "30", "2")
    pending: dict[int, set[str]] = defaultdict(set)  # per thread, the streams whose work is not known to be done
    checked = 0
    for call in done.log:
        stream = call.fields.get("stream")
        if call.name == "cudaStreamSynchronize" and stream is not None:
            pending[call.thread].discard(stream)
        elif call.name in ("cudaLaunchKernel", "cudaMemcpyAsync") and stream is not None:
            assert pending[call.thread] <= {stream}, (call, pending[call.thread])
            pending[call.thread].add(stream)
            checked += 1
    assert checked > 1000


def test_nothing_leaks_over_a_thousand_batches(cuda_stub: CudaStub) -> None:
    few, many = cuda_stub.run("-c", RUN, "20", "2"), cuda_stub.run("-c", RUN, "1000", "10")
    for done in (few, many):
        assert done.stdout.startswith("True 64"), done.stderr
        for make, give_back in LEAKS.items():
            assert len(done.calls(give_back)) <= len(done.calls(make))
    assert made(few) == made(many)
    kilobytes = [int(done.stdout.split()[-1]) for done in (few, many)]
    assert kilobytes[1] - kilobytes[0] < 64 << 10


@pytest.mark.parametrize("ties", [2, 3, 7, 50, 5000])
def test_the_lower_label_comes_first_among_equals(cuda_stub: CudaStub, ties: int) -> None:
    """However many there are: more than the slot asked for are found in a second run."""
    done = cuda_stub.run("-c", RUN, "6", "1", CUDA_STUB_TIES=str(ties))
    assert done.stdout.startswith("True 64"), done.stderr


@pytest.mark.parametrize("megabytes", [300, 700])
def test_memory_that_runs_out_while_opening_halves_the_batch(
    cuda_stub: CudaStub, tmp_path: Path, megabytes: int
) -> None:
    done = score(cuda_stub, tmp_path / "preds.csv", CUDA_STUB_MEGABYTES=str(megabytes))
    assert done.returncode == 0
    assert re.search(r"memory ran out: batches of [0-9,]+ instead of 4,096", done.stderr), done.stderr


def test_a_limit_holds_for_each_gpu(cuda_stub: CudaStub, tmp_path: Path) -> None:
    done = score(cuda_stub, tmp_path / "preds.csv", "--gpu-memory", "0.4")
    assert done.returncode == 0, done.stderr
    assert "memory ran out: batches of " in done.stderr
    assert most_held(done) < 0.45 * 2**30
    free = score(cuda_stub, tmp_path / "preds.csv")
    assert "memory ran out" not in free.stderr
    assert most_held(free) > 0.6 * 2**30


@pytest.mark.parametrize(("part", "written"), [((), "csv"), (("--part", "1/1"), "csv.part-1-of-1")])
def test_a_resumed_job_keeps_the_size_of_its_batches(
    cuda_stub: CudaStub, tmp_path: Path, part: tuple[str, ...], written: str
) -> None:
    """By which its rows' last bits go: the memory of the day decides it for a job that begins."""
    output, batches = tmp_path / "preds.csv", ("--batch-size", "8", *part)
    launches = score(cuda_stub, tmp_path / "whole.csv", *batches).kinds()["launch"]
    stopped = score(cuda_stub, output, *batches, failing=f"launch:{launches * 3 // 4}:719")
    assert "are kept" in stopped.stderr
    done = score(cuda_stub, output, "--resume", *part)
    assert done.returncode == 0, done.stderr
    assert "of an earlier run" in done.stderr
    assert "batches of 8" in done.stderr
    if not part:  # a part file tells where its commits were
        assert output.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert (tmp_path / f"preds.{written}").exists()


def most_held(done: StubRun) -> int:
    """The most bytes of the GPU's memory that were allocated at once."""
    signs = {"cudaMalloc": 1, "cudaFree": -1}
    changes = [signs[call.name] * int(call.fields["size"]) for call in done.log if call.name in signs]
    return max(itertools.accumulate(changes))


def test_all_gpus_of_the_machine(cuda_stub: CudaStub, tmp_path: Path) -> None:
    done = score(cuda_stub, tmp_path / "preds.csv", "--device", "cuda:all", "--batch-size", "16", CUDA_STUB_DEVICES="3")
    assert done.returncode == 0
    assert "cuda:0,1,2, CUDAExecutionProvider: asked for" in done.stderr
    assert len({call.thread for call in done.calls("cudaLaunchKernel")}) == 3 * SLOTS
    none = score(cuda_stub, tmp_path / "preds.csv", "--device", "cuda:3", "--quiet", CUDA_STUB_DEVICES="3")
    assert none.returncode == DeviceError.exit_code
    assert none.stderr == "score: cuda:3 is not there: CUDA sees 3 GPUs; see nvidia-smi\n"


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({}, "ok      driver: for CUDA 13.0, ONNX Runtime for CUDA 13.0"),
        ({}, "ok      cuda:0: CUDA stub, compute capability 9.0"),
        ({"CUDA_STUB_CAPABILITY": "87"}, "ok      cuda:0: CUDA stub, compute capability 8.7"),
        (
            {"CUDA_STUB_DRIVER": "12080"},
            "PROBLEM driver: for CUDA 12.8, ONNX Runtime for CUDA 13.0; fix: install NVIDIA's driver 580 or newer",
        ),
        (
            {"CUDA_STUB_CAPABILITY": "70"},
            "PROBLEM cuda:0: CUDA stub, compute capability 7.0; ONNX Runtime has kernels for 7.5, 8.0, ",
        ),
        ({"CUDA_STUB_DEVICES": "0"}, "PROBLEM driver: NVIDIA's driver does not work: cuInit: no GPU"),
    ],
)
def test_the_doctor_reads_driver_and_gpus(cuda_stub: CudaStub, variables: dict[str, str], line: str) -> None:
    done = cuda_stub.run("yt8m.py", "doctor", **variables)
    assert line in done.stdout
    assert done.stderr == ""


def test_no_room_for_the_model_is_an_error_or_a_reason_for_the_cpu(cuda_stub: CudaStub, tmp_path: Path) -> None:
    done = score(cuda_stub, tmp_path / "preds.csv", "--quiet", CUDA_STUB_MEGABYTES="20")
    assert done.returncode == DeviceError.exit_code
    assert re.fullmatch("score: cuda:0 has no room for .*; free its memory, or use --device cpu\n", done.stderr)
    done = score(cuda_stub, tmp_path / "preds.csv", "--device", "auto", CUDA_STUB_MEGABYTES="20")
    assert done.returncode == 0
    assert "cpu, CPUExecutionProvider: cuda:0 has no room" in done.stderr


def test_the_benchmark_runs(cuda_stub: CudaStub) -> None:
    """On the stand-ins its figures mean nothing; this shows that every part but training comes to its end."""
    sizes = ["--gigabytes", "0.002", "--batch-size", "64", "--rounds", "1", "--seconds", "0.01"]
    model = str(ROOT / "scorer" / "bundled" / "default.onnx")
    done = cuda_stub.run("-m", "benchmarks.gpu", "--models", model, *sizes, "--no-training", CUDA_STUB_TIES="3")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    exact = next(line for line in done.stdout.splitlines() if line.startswith("| default.onnx"))
    assert exact.startswith("| default.onnx | 100.00% | 100.00% | 100.00% | 0.00% | yes | 100.00% | 100.00% |")
    captures = done.calls("cudaStreamBeginCapture")
    assert len(captures) == 1 + SLOTS, "the session that is measured with a CUDA graph, and the slots of such a job"
    assert not done.calls("FORBIDDEN")


def test_the_benchmark_says_first_what_is_missing(cuda_stub: CudaStub) -> None:
    """Not after minutes on a machine that is lent."""
    done = cuda_stub.run("-m", "benchmarks.gpu")
    assert done.returncode == DeviceError.exit_code
    missing = "there is no torch, no onnx, no safetensors, no tfrecord"
    assert done.stderr.startswith(f"benchmarks.gpu: {missing}; install them")
    assert not done.log


KINDS = {
    "launch": 719,
    "copy": 700,
    "sync": 719,
    "product": 719,
    "register": 719,
    "allocation": 700,
    "stream": 719,
    "handle": 1,
}
"""Kind of call -> the CUDA error it gives; those of 700 and more stay, as on a GPU."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_error_ends_in_one_line_and_what_was_done_is_kept(
    cuda_stub: CudaStub, tmp_path: Path, kind: str
) -> None:
    whole = score(cuda_stub, tmp_path / "whole.csv", "--batch-size", "8")
    expected, total = (tmp_path / "whole.csv").read_bytes(), whole.kinds()[kind]
    if kind == "register":
        total = LOCKED_AT_FIRST + INPUTS  # how many batches are in flight at most is for the threads to find out
    assert total > 0
    kept = 0
    for number in sorted({1, total * 2 // 3, total}):
        output = tmp_path / f"{number}.csv"
        done = score(cuda_stub, output, "--batch-size", "8", "--quiet", failing=f"{kind}:{number}:{KINDS[kind]}")
        assert done.returncode == DeviceError.exit_code, (number, total, done.stderr)
        assert done.stderr.startswith("score: ")
        assert done.stderr.count("\n") == 1, done.stderr
        assert not output.exists()
        if "are kept" in done.stderr:
            kept += 1
            resumed = score(cuda_stub, output, "--batch-size", "8", "--resume")
            assert resumed.returncode == 0, resumed.stderr
            assert "of an earlier run" in resumed.stderr
            assert output.read_bytes() == expected
    if kind in ("launch", "copy", "sync", "product"):
        assert kept > 0, "no error came in mid-job"
