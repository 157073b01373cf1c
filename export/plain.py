"""torch.onnx.export as it comes: the graph that speed is compared with, and the way out for models without `trace`."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from onnx import GraphProto, ModelProto
from torch import Tensor, nn

from export.onnx_writer import RESERVED, check_inputs, finish, set_metadata
from train.models.lstm import Recurrent


def plain_export(model: nn.Module, inputs: Sequence[tuple[str, int]], metadata: Mapping[str, str]) -> ModelProto:
    """What torch.onnx.export makes of `model`, with Sigmoid and TopK behind it, to the scorer's contract.

    Recurrent layers are exported as the nn.LSTM that they are. Traces of where it was made (stack traces, paths, names
    of functions) are taken out. Raises ModelError where an input has the name of another value.
    """
    check_inputs([name for name, _ in inputs], RESERVED)
    wanted = {name: {0: "batch"} for name, _ in inputs}
    features = tuple(torch.zeros(2, width) for _, width in inputs)
    with _as_torch_runs_it(model), _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Plain(model).eval(),
            features,
            dynamo=True,
            verbose=False,
            input_names=list(wanted),
            output_names=["logits"],
            dynamic_shapes=(tuple(wanted.values()),),
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    _number(proto.graph, {*wanted, "logits"})
    labels = proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    finish(proto.graph, "logits", dict(inputs), labels)
    proto.producer_version = ""
    set_metadata(proto, metadata)
    return proto


class _Plain(nn.Module):
    """One tuple of inputs, so that the exporter sees a fixed number of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs)


@contextmanager
def _as_torch_runs_it(model: nn.Module) -> Iterator[None]:
    """Recurrent layers of one step through nn.LSTM, not through their short cut."""
    layers = [m for m in model.modules() if isinstance(m, Recurrent) and m.steps == 1]
    for layer in layers:
        layer.steps = 0
    try:
        yield
    finally:
        for layer in layers:
            layer.steps = 1


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks of its own internals on every stream; what fails raises all the same."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _number(graph: GraphProto, keep: set[str]) -> None:
    """Name nodes and values by their place: the exporter's own names count up with every export of the process."""
    names = {name: name for name in ("", *keep)}
    values = [tensor.name for tensor in graph.initializer] + [name for node in graph.node for name in node.output]
    for value in values:
        names.setdefault(value, f"value_{len(names)}")
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for index, node in enumerate(graph.node):
        node.name = f"node_{index}"
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]


def _strip(proto: ModelProto) -> None:
    """Remove what the exporter notes about itself: doc strings, metadata, shapes of intermediate values."""
    del proto.metadata_props[:], proto.graph.metadata_props[:], proto.graph.value_info[:]
    proto.doc_string = proto.graph.doc_string = ""
    for node in proto.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*proto.graph.input, *proto.graph.output, *proto.graph.initializer]:
        value.doc_string = ""
        del value.metadata_props[:]
