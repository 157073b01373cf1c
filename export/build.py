"""From a checkpoint to a checked file: trace, reduce, convert, gate, write. Nothing is left where a step fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from torch import nn

from export.emulate import EmulatedFp16
from export.graph import Graph, with_embeddings
from export.onnx_writer import contrib_operators, json_text, set_metadata, to_onnx
from export.parity import (
    BOUND,
    HALF_BOUND,
    Reference,
    Report,
    check_embeddings,
    check_independence,
    check_parity,
    check_quality,
    expected_of,
    torch_embeddings,
    torch_reference,
)
from export.plain import plain_export
from export.precision import quantise, to_fp16
from export.reduce import reduce
from export.tracing import Untranslatable, trace
from export.videos import VideoSample
from scorer.errors import GateError, ModelError
from scorer.model.contract import FORMAT
from scorer.model.model import Model
from scorer.model.runtime import has_cuda, import_runtime
from scorer.outputs.atomic import replacing, writing
from scorer.system.phases import At, nobody, portion
from train.checkpoint import Checkpoint, digest

_DEVICE_BATCH = 1024  # the largest of the gates, to which a GPU pads all others


@dataclass(frozen=True)
class TracedCheckpoint:
    """A checkpoint opened for export.

    model: in evaluation mode. reference: its probabilities. embeddings: its embeddings, where the files are to give
    them. graph, reduced: as it was trained, and without what can
    be left out; both None for a model with layers that have no translation (export/tracing.py). metadata:
    all that does not depend on the precision.
    """

    checkpoint: Checkpoint
    model: nn.Module
    reference: Reference
    graph: Graph | None
    reduced: Graph | None
    metadata: Mapping[str, str]
    embeddings: Reference | None = None

    @property
    def inputs(self) -> dict[str, int]:
        return dict(self.checkpoint.config.inputs)


@dataclass(frozen=True)
class Exported:
    """A file that passed its gates. nodes: ONNX operators in it. parameters: numbers in its initialisers.

    device: where it passed them too, beside the CPU; "cpu" where nowhere else.
    """

    path: Path
    precision: str
    report: Report
    nodes: int
    parameters: int
    bytes: int
    device: str = "cpu"


def trace_checkpoint(
    checkpoint: Checkpoint, names: Sequence[str] | None = None, *, embeddings: bool = False
) -> TracedCheckpoint:
    """Trace and reduce a checkpoint's model. names: its labels' names, for the metadata.

    embeddings: have the files give what the last Dense layer reads (`export.graph.with_embeddings`).

    Raises ModelError where the model cannot give them.
    """
    model = checkpoint.model()
    inputs = checkpoint.config.inputs
    graph, reduced = _graphs(model, inputs, embeddings)
    metadata = {
        "yt8m.format": FORMAT,
        "yt8m.model": checkpoint.config.name,
        "yt8m.config": checkpoint.config.to_json(),
        "yt8m.labels": str(checkpoint.config.labels),
        "yt8m.metrics": json_text(checkpoint.metrics),
        "yt8m.weights_sha256": digest(checkpoint.state),
    }
    if checkpoint.trained_on is not None:
        metadata["yt8m.videos"] = str(checkpoint.trained_on.videos)
        metadata["yt8m.ranges"] = json_text(checkpoint.trained_on.ranges)
    if names is not None:
        metadata["yt8m.names"] = json_text(list(names))
    reference = torch_reference(model, dict(inputs))
    own = torch_embeddings(model, dict(inputs)) if embeddings else None
    return TracedCheckpoint(checkpoint, model, reference, graph, reduced, metadata, own)


def _graphs(
    model: nn.Module, inputs: Sequence[tuple[str, int]], embeddings: bool
) -> tuple[Graph, Graph] | tuple[None, None]:
    try:
        graph = trace(model, inputs)
    except Untranslatable:
        if embeddings:
            remedy = "export it without them"
            raise ModelError("embeddings need a model whose layers have a method `trace`", remedy=remedy) from None
        return None, None
    if embeddings:
        graph = with_embeddings(graph)
    return graph, reduce(graph)


def export_to(
    path: Path,
    traced: TracedCheckpoint,
    precision: str,
    check: VideoSample,
    calibration: VideoSample,
    at: At = nobody,
    device: str = "cpu",
) -> Exported:
    """Write the model in `precision` to `path`, which is replaced only by a file that passes its gates.

    Args:
        device: where it has to pass them too, beside the CPU; "auto" is the first GPU where CUDA opens. The file
            holds the CPU's report alone: the same checkpoint gives the same bytes.

    Raises:
        DeviceError: `device` is not there or failed.
        GateError: it does not answer as the checkpoint does, or a video's answer depends on its neighbours.
        ModelError: it cannot be converted.
        OutputError: the folder cannot be written.
    """
    proto = convert(traced, precision, calibration)
    onnx.checker.check_model(proto, full_check=True)
    at(0.2)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        with writing(path):
            write(part, proto)
        report = _gate(Model.open(str(part), device="cpu"), traced, precision, check, portion(at, 0.2, 1.0))
        device = _gate_on(device, part, traced, precision, check, at)
        if precision == "int8":
            report["calibration"] = {"videos": calibration.source}
        entries = {entry.key: entry.value for entry in proto.metadata_props}
        set_metadata(proto, {**entries, "yt8m.parity": json_text(report)})
        with writing(path):
            size = write(part, proto)
    parameters = sum(int(np.prod(tensor.dims)) for tensor in proto.graph.initializer)
    return Exported(path, precision, report, len(proto.graph.node), parameters, size, device)


def convert(traced: TracedCheckpoint, precision: str, calibration: VideoSample) -> ModelProto:
    """The ONNX model of `traced` in `precision`. Raises ModelError where that cannot be."""
    metadata = {**traced.metadata, "yt8m.precision": precision, "yt8m.parity": "{}", "yt8m.operators": "[]"}
    if traced.reduced is None and precision != "fp32":
        raise ModelError(f"{precision} needs a model of train/models/", remedy="export it in fp32")
    if traced.reduced is None:
        proto = plain_export(traced.model, traced.checkpoint.config.inputs, metadata)
    elif precision == "int8":
        proto = to_onnx(quantise(traced.reduced, calibration.features), precision, metadata)
    elif precision == "fp16":
        proto = to_onnx(to_fp16(traced.reduced), precision, metadata)
    else:
        proto = to_onnx(traced.reduced, precision, metadata)
    set_metadata(proto, {**metadata, "yt8m.operators": json_text(contrib_operators(proto))})
    return proto


def _gate(model: Model, traced: TracedCheckpoint, precision: str, check: VideoSample, at: At) -> Report:
    report: Report = {}
    bound = HALF_BOUND if precision == "fp16" else BOUND
    if precision == "fp32":
        report["pytorch"] = check_parity(model, traced.reference, traced.inputs, check, portion(at, 0.0, 0.5))
    else:
        expected = expected_of(traced.reference, check, portion(at, 0.0, 0.3))
        if precision == "fp16" and traced.reduced is not None and model.facts.device == "cpu":
            emulated = EmulatedFp16(to_fp16(traced.reduced))
            report["emulated"] = check_quality(emulated, expected, check, portion(at, 0.3, 0.6))
        report["quality"] = check_quality(model, expected, check, portion(at, 0.6, 0.8))
    report["independence"] = check_independence(model, check, bound, portion(at, 0.8, 0.95))
    if traced.embeddings is not None:
        report["embeddings"] = check_embeddings(model, traced.embeddings, check, precision, portion(at, 0.95, 1.0))
    return report


def _gate_on(device: str, path: Path, traced: TracedCheckpoint, precision: str, check: VideoSample, at: At) -> str:
    """Pass the gates on the device, unless that is the CPU; which one it was.

    Raises GateError, with the device in front, and DeviceError.
    """
    if device == "cpu" or (device == "auto" and not has_cuda(import_runtime())):
        return "cpu"
    model = Model.open(str(path), device=device, batch_size=_DEVICE_BATCH)
    if model.facts.device == "cpu":
        return "cpu"
    try:
        _gate(model, traced, precision, check, at)
    except GateError as error:
        raise GateError(f"on {model.facts.device}: {error.message}", remedy=error.remedy) from None
    return model.facts.device


def write(path: Path, proto: ModelProto) -> int:
    """Serialise, fields and maps in a fixed order; gives the number of bytes."""
    return path.write_bytes(proto.SerializeToString(deterministic=True))
