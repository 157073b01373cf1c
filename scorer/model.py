"""The model: one ONNX file behind `Model.run`. The only module that imports ONNX Runtime.

    model = Model.open("models/bilstm.onnx", device="auto")
    scores, labels = model.run({"mean_rgb": rgb, "mean_audio": audio}, k=10)

docs/formats.md has the contract of the file; all of it is checked when the file is opened, before any shard is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scorer.cores import usable_cores
from scorer.errors import DeviceError, ModelError, UsageError
from scorer.onnx_file import EXPORT_IT, fingerprint

Floats: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]
Session: TypeAlias = Any  # onnxruntime.InferenceSession, which has no type information

FORMAT = "1"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_OUTPUTS = ["scores", "labels"]
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Contract:
    """What a model reads and answers: inputs (name -> width), their dtype, label count, names and metadata."""

    inputs: dict[str, int]
    dtype: type[np.float32] | type[np.float16]
    labels: int
    names: list[str] | None
    metadata: dict[str, str]


class Model:
    """An open model on one device. `run` may be called from several threads at once."""

    def __init__(self, session: Session, contract: Contract, path: str, sha256: str, reason: str, threads: int) -> None:
        """Use `Model.open`."""
        self._session = session
        self._dtype = contract.dtype
        self.path = path
        self.sha256 = sha256
        self.inputs = contract.inputs
        self.labels = contract.labels
        self.names = contract.names
        self.metadata = contract.metadata
        self.provider: str = session.get_providers()[0]
        self.runtime = f"onnxruntime {_runtime().__version__}"
        self.device = "cpu"
        self.reason = reason
        self.threads = threads
        self.lanes = 1
        self.batch_size = 1024

    @classmethod
    def open(cls, path: str, *, device: str = "auto", threads: int | None = None) -> Model:
        """Open the ONNX file at `path`.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:N"; "auto" takes CUDA where it opens, `.reason` says why.
            threads: CPU threads that compute; all usable cores by default.

        Raises:
            ModelError: the file is absent, damaged or does not follow the contract.
            DeviceError: the device or the runtime is not there.
        """
        sha256 = fingerprint(path)
        count = threads or usable_cores()
        session, reason = _open_session(path, device, count)
        model = cls(session, _read_contract(path, session), path, sha256, reason, count)
        return model

    @property
    def schema(self) -> Any:
        """The TFRecord features to decode: `scorer.examples.Schema` of the inputs."""
        from scorer.examples import Schema

        return Schema(self.inputs)

    def run(self, features: Mapping[str, Floats], k: int = 10) -> tuple[Floats, Labels]:
        """The `k` best labels of n videos: scores float32 (n, k), descending, and labels int64 (n, k).

        Args:
            features: per input a float32 array (n, width); finite.
            k: 1 to `.labels`.

        Raises:
            UsageError: other features, shapes or k.
            DeviceError: the device failed.
        """
        feed, videos = self._feed(features, k)
        if videos == 0:
            return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
        scores, labels = self._session.run(_OUTPUTS, feed)
        return scores, labels

    def _feed(self, features: Mapping[str, Floats], k: int) -> tuple[dict[str, NDArray[Any]], int]:
        if not 1 <= k <= self.labels:
            raise UsageError(f"k is {k}", remedy=f"choose 1 to {self.labels}, the labels of {self.path}")
        missing = [name for name in self.inputs if name not in features]
        if missing:
            raise UsageError(f"the model reads {list(self.inputs)}, and {missing[0]} was not given")
        arrays = {name: np.asarray(features[name], self._dtype) for name in self.inputs}
        videos = len(next(iter(arrays.values())))
        for name, width in self.inputs.items():
            if arrays[name].shape != (videos, width):
                raise UsageError(f"{name} has shape {arrays[name].shape}, the model reads ({videos}, {width})")
        return {**arrays, "k": np.array([k], np.int64)}, videos


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise DeviceError("ONNX Runtime is not installed", remedy="pip install 'yt8m-edge[cpu]'") from None
    return onnxruntime


def _open_session(path: str, device: str, threads: int) -> tuple[Session, str]:
    runtime = _runtime()
    if device not in ("auto", "cpu"):
        raise DeviceError(f"--device {device} is not there", remedy="use --device cpu")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    try:
        session = runtime.InferenceSession(path, options, providers=[CPU], enable_fallback=0)
    except Exception as error:
        raise ModelError(f"{path} cannot be opened: {error}", remedy=EXPORT_IT) from None
    return session, "asked for" if device == "cpu" else "no CUDA provider here"


def _read_contract(path: str, session: Session) -> Contract:
    """Check every clause of the contract; ModelError names the first that is broken."""
    try:
        metadata = dict(session.get_modelmeta().custom_metadata_map)
        inputs, dtype = _read_inputs(session)
        _check_k(session)
        _check_outputs(session)
        labels, names = _read_labels(metadata)
    except ValueError as error:
        raise ModelError(f"{path} is not a model of this scorer: {error}", remedy=EXPORT_IT) from None
    return Contract(inputs, dtype, labels, names, metadata)


def _read_inputs(session: Session) -> tuple[dict[str, int], Any]:
    widths, types = {}, set()
    for node in session.get_inputs():
        if node.name == "k":
            raise ValueError("its input k has no default")
        if node.type not in _INPUT_TYPES:
            raise ValueError(f"its input {node.name} is {node.type}, not float32")
        if len(node.shape) != 2 or not isinstance(node.shape[1], int) or isinstance(node.shape[0], int):
            raise ValueError(f"its input {node.name} has shape {node.shape}, not [batch, width]")
        widths[node.name] = node.shape[1]
        types.add(node.type)
    if len(types) != 1:
        raise ValueError("its inputs are of several types" if types else "it has no inputs")
    return widths, _INPUT_TYPES[types.pop()]


def _check_k(session: Session) -> None:
    found = {node.name: (node.type, list(node.shape)) for node in session.get_overridable_initializers()}
    if found.get("k") != ("tensor(int64)", [1]):
        raise ValueError("it has no overridable initializer k of type int64[1]")


def _check_outputs(session: Session) -> None:
    found = {node.name: (node.type, len(node.shape)) for node in session.get_outputs()}
    for name, kind in (("scores", "tensor(float)"), ("labels", "tensor(int64)")):
        if found.get(name) != (kind, 2):
            raise ValueError(f"it has no output {name} of type {kind} and rank 2")


def _read_labels(metadata: Mapping[str, str]) -> tuple[int, list[str] | None]:
    version = metadata.get("yt8m.format")
    if version != FORMAT:
        raise ValueError(f"its yt8m.format is {version}, this scorer reads {FORMAT}" if version else "no yt8m.format")
    count = metadata.get("yt8m.labels", "")
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f"its yt8m.labels is {count!r}, not a label count")
    names = json.loads(metadata["yt8m.names"]) if "yt8m.names" in metadata else None
    if names is not None and (not isinstance(names, list) or len(names) != int(count)):
        raise ValueError(f"its yt8m.names is not a list of {count} names")
    return int(count), names
