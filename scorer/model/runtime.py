"""ONNX Runtime: which package is installed, whether it imports, and sessions without silent fall-backs.

The only module that imports onnxruntime. Its two packages, onnxruntime and onnxruntime-gpu, share one folder, and
installing or removing one breaks the other; each such state is named together with the command that repairs it.

Left alone, ONNX Runtime 1.29 and later sends telemetry and keeps a device id and a database in the user's cache folder,
and every version prints warnings of its own. Both are turned off before anything else is asked of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from scorer.errors import DeviceError, Hint, ModelError, Yt8mError
from scorer.model.devices import CPU, CUDA
from scorer.model.onnx_file import EXPORT_IT, ModelFile
from scorer.system.cores import unbound
from scorer.system.packages import install_command

Session: TypeAlias = Any  # onnxruntime.InferenceSession; the package has no type information

NO_CUDA = "the onnxruntime installed has no CUDA provider"
BOTH_INSTALLED = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other"

_NO_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_SILENT = 4  # the severity of nothing: what fails is told once, by the exception
_TOO_NEW = (  # a model from the future, in our words and in its own
    ("IR {has}", r"Unsupported model IR version: (?P<has>\d+), max supported IR version: (?P<reads>\d+)"),
    ("opset {has} of {domain}", r"Opset (?P<has>\d+) is .* for domain (?P<domain>\S+) is till opset (?P<reads>\d+)"),
)
_HEAVY = re.compile("MatMul|Gemm|LSTM")  # operators that make a model's work
_OF_INTEGERS = re.compile("Integer|^QLinear|^QGemm|^DynamicQuantize")
_CUDA_SAID = re.compile(r"\bCU[A-Z]+ (failure|error) .*?(?= ; GPU=|$)")  # amid names of C++ templates and nodes
_AS_REQUESTED = "kSameAsRequested"  # the arena grows by what is needed, not twofold
_OUT_OF_MEMORY = re.compile(
    "out of memory|is smaller than requested bytes|failed to allocate|bad allocation|bad_alloc|ALLOC_FAILED",
    re.IGNORECASE,
)


def reinstall(extra: str) -> str:
    """The command that leaves one package of the two: that of the extra "cpu" or "gpu"."""
    return f"pip uninstall -y onnxruntime onnxruntime-gpu && {install_command(extra)}"


def installed_runtimes() -> list[str]:
    """Which of onnxruntime and onnxruntime-gpu pip has installed. (importlib.metadata alone takes longer to import.)"""
    folders = [Path(folder) for folder in sys.path if folder]
    found = {path.name.split("-")[0] for folder in folders for path in folder.glob("onnxruntime*-*.dist-info")}
    return [name for name in ("onnxruntime", "onnxruntime-gpu") if name.replace("-", "_") in found]


def import_runtime() -> Any:
    """The module onnxruntime, without telemetry (unless the user has set its variable) and without a log of its own.

    Where the program has imported it already, both are left as that program has them.

    Raises:
        DeviceError: it is absent or broken; the remedy is the command that repairs it.
    """
    first = "onnxruntime" not in sys.modules
    os.environ.setdefault(_NO_TELEMETRY, "1")  # read when it is imported
    try:
        with unbound() if first else contextlib.nullcontext():  # it takes Intel's AMX if that works from core to core
            import onnxruntime

        if not hasattr(onnxruntime, "InferenceSession"):  # what removing one of two packages leaves
            raise ImportError("the package is incomplete")
        if first:
            onnxruntime.set_default_logger_severity(_SILENT)
    except ImportError as error:
        installed = installed_runtimes()
        if len(installed) > 1:
            raise DeviceError(BOTH_INSTALLED, remedy=reinstall("cpu")) from error
        if installed:
            raise DeviceError(
                f"{installed[0]} does not import: {first_line(error)}", remedy=reinstall("cpu")
            ) from error
        raise DeviceError("ONNX Runtime is not installed", remedy=f"{install_command('cpu')} (or [gpu])") from error
    return onnxruntime


def open_cpu(runtime: Any, model: ModelFile | bytes, threads: int) -> Session:
    """A session on the CPU whose `run` computes in `threads` threads, the caller's included.

    They sleep while they wait, since a spinning thread takes its core from the decoder (benchmarks/slots.py).

    Raises:
        ModelError: ONNX Runtime cannot open the model.
        DeviceError: there is not enough memory.
    """
    options = _options(runtime)
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return _open(runtime, model, options, [CPU])
    except Exception as error:
        if speaks_of_memory(error):
            raise DeviceError(f"there is not enough memory for {_name(model)}", remedy="take an int8 model") from error
        raise _does_not_open(runtime, model, error) from error


def has_cuda(runtime: Any) -> bool:
    """Whether this ONNX Runtime has the CUDA provider, be it able to open or not."""
    return CUDA in runtime.get_available_providers()


def load_cuda(runtime: Any) -> None:
    """Load the CUDA libraries that pip installed. Raises DeviceError where this ONNX Runtime has no CUDA provider."""
    if not has_cuda(runtime):
        raise DeviceError(NO_CUDA, remedy=reinstall("gpu"))
    if hasattr(runtime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints those that it does not find
            runtime.preload_dlls()


@dataclass(frozen=True)
class GpuOptions:
    """How a session uses its GPU.

    tf32: round the factors of float32 products to 10 bits. memory: bytes that it may take, at most.
    graphs: capture runs as CUDA graphs; for one thread and bound buffers only.
    """

    tf32: bool = False
    memory: int | None = None
    graphs: bool = False


def open_cuda(runtime: Any, model: ModelFile | bytes, gpu: int, options: GpuOptions = GpuOptions()) -> Session:
    """A session on GPU number `gpu`.

    Raises:
        DeviceError: CUDA, the GPU or the model does not open, or CUDA has no kernel for its heavy operators.
        MemoryError: the GPU has no room for the model.
    """
    load_cuda(runtime)
    session_options = _options(runtime)
    session_options.use_deterministic_compute = True
    session_options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session_options.add_session_config_entry("session.disable_quant_qdq", "1")  # unpack int8 weights once, not per run
    choices: dict[str, Any] = {
        "device_id": gpu,
        "use_tf32": int(options.tf32),
        "enable_cuda_graph": int(options.graphs),
    }
    if options.memory is not None:
        choices |= {"gpu_mem_limit": options.memory, "arena_extend_strategy": _AS_REQUESTED}
    with device_errors(f"cuda:{gpu}"):
        session = _open(
            runtime, model, session_options, [(CUDA, {name: str(value) for name, value in choices.items()})]
        )
    if session.get_providers()[0] != CUDA:  # ONNX Runtime itself leaves out a provider that does not load
        why = _why_cuda_does_not_load(runtime)
        raise DeviceError(f"cuda:{gpu} does not open{why}", remedy="`yt8m doctor` says what is missing")
    if left := _heavy_on_cpu(session):
        remedy = "use an fp16 model" if any(map(_OF_INTEGERS.search, left)) else ""
        raise DeviceError(f"CUDA has no kernel for {', '.join(left)}", remedy=remedy, hints=(Hint.ON_CPU,))
    return session


def open_provider(runtime: Any, model: bytes, provider: str, choices: Mapping[str, str]) -> Session:
    """A session on another execution provider, ONNX Runtime's name for it, with that one's own options.

    Raises:
        DeviceError: provider or model does not open, or the provider leaves heavy operators to the CPU.
        MemoryError: the device has no room for the model.
    """
    options = _options(runtime)
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    with device_errors(provider):
        session = _open(runtime, model, options, [(provider, dict(choices))])
    if session.get_providers()[0] != provider:
        raise DeviceError(f"{provider} does not open", remedy="see its documentation for what it needs")
    if left := _heavy_on_cpu(session):
        raise DeviceError(f"{provider} has no kernel for {', '.join(left)}", hints=(Hint.ON_CPU,))
    return session


def _why_cuda_does_not_load(runtime: Any) -> str:
    """What the system's loader says of ONNX Runtime's CUDA provider, which ONNX Runtime itself only logs."""
    try:
        ctypes.CDLL(str(Path(runtime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so"))
    except OSError as error:
        return f": {error}"
    return ""


def first_line(error: BaseException) -> str:
    """ONNX Runtime's message without error codes and places in its source: the first line, or what CUDA said."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if said := _CUDA_SAID.search(line):
        return said[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    line = re.sub(r"^\S+\.(?:cc|h):\d+ \S+ \S+\([^()]*\)(?: const)? (?=.)", "", line)  # where, and in which function
    return re.sub(r"/\S*onnxruntime\S*/", "", line)[:300]


def speaks_of_memory(error: Exception) -> bool:
    """Whether an exception of ONNX Runtime says that there was not enough memory."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def device_errors(device: str) -> Iterator[None]:
    """Turns ONNX Runtime's exceptions into DeviceError, or into MemoryError where they speak of memory."""
    try:
        yield
    except (Yt8mError, MemoryError):
        raise
    except Exception as error:
        if speaks_of_memory(error):
            raise MemoryError(first_line(error)) from error
        raise DeviceError(f"{device} failed: {first_line(error)}", remedy="see `yt8m doctor`") from error


def _options(runtime: Any) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = _SILENT
    # Else it judges by the name or the first bytes, and opens as its own format what was examined as ONNX.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _open(runtime: Any, model: ModelFile | bytes, options: Any, providers: Sequence[Any]) -> Session:
    source = model if isinstance(model, bytes) else model.address
    return runtime.InferenceSession(source, options, providers=providers, enable_fallback=0)


def _name(model: ModelFile | bytes) -> str:
    return "the model" if isinstance(model, bytes) else model.path


def _does_not_open(runtime: Any, model: ModelFile | bytes, error: Exception) -> ModelError:
    """What ONNX Runtime has against the model; where that is its age, what it reads and what to do."""
    for what, pattern in _TOO_NEW:
        if found := re.search(pattern, str(error)):
            reads = f"ONNX Runtime {runtime.__version__} reads up to {found['reads']}"
            has = what.format(**found.groupdict())
            upgrade = "upgrade it: pip install --upgrade onnxruntime"
            return ModelError(f"{_name(model)} has {has}, {reads}", remedy=upgrade)
    line = first_line(error)
    if not isinstance(model, bytes):
        line = line.replace(model.address, model.path)
    return ModelError(f"{_name(model)} does not open: {line}", remedy=EXPORT_IT)


def _heavy_on_cpu(session: Session) -> list[str]:
    """Heavy operators that CUDA left to the CPU."""
    parts = [part for part in session.get_provider_graph_assignment_info() if part.ep_name == CPU]
    return sorted({node.op_type for part in parts for node in part.get_nodes() if _HEAVY.search(node.op_type)})
