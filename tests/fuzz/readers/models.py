"""ONNX files: graphs that are changed as a model's maker could, and what files say of themselves."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from scorer.cli import inspection
from scorer.model.find import BUNDLED, provenance
from scorer.model.model import Model
from scorer.model.onnx_file import ModelFile
from tests.fuzz.readers.harness import FuzzedReader, memory, reset_peak
from tests.fuzz.readers.mutations import NUMBERS, TEXTS, changed_bytes, changed_json, dumped
from tests.onnx_models import build_model

_INPUTS = {"mean_rgb": 8, "mean_audio": 4}
_LABELS = 20
_SCAN_KIB = 8 << 10
"""What examining a file may take, whatever is in it. What ONNX Runtime takes is the model's to decide (SECURITY.md)."""
_ENTRIES = (
    *("yt8m.format", "yt8m.labels", "yt8m.names", "yt8m.ranges", "yt8m.metrics", "yt8m.parity", "yt8m.config"),
    *("yt8m.operators", "yt8m.videos", "yt8m.precision", "yt8m.model", "yt8m.weights_sha256", "other"),
)


def make_onnx(folder: Path) -> FuzzedReader:
    """The whole way from a file to predictions, on the CPU."""
    path = folder / "model.onnx"
    small = [_small(hidden=hidden, half=half) for hidden in (0, 6) for half in (False, True)]
    bundled = onnx.load(BUNDLED)

    def make(random: Random) -> bytes:
        model = ModelProto()
        model.CopyFrom(bundled if random.random() < 0.05 else random.choice(small))
        if random.random() < 0.3:
            return changed_bytes(random, model.SerializeToString(), [each.SerializeToString() for each in small])
        for _ in range(random.choice((1, 1, 2, 4))):
            _change_model(random, model)
        return model.SerializeToString()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        reset_peak()
        before = memory("VmRSS")
        ModelFile(str(path)).close()
        assert memory("VmHWM") - before < _SCAN_KIB, "examining the file took too much memory"
        model = Model.open(str(path), device="cpu", threads=1, batch_size=4)
        features = {name: np.ones((3, width), np.float32) for name, width in model.facts.inputs.items()}
        k = min(3, model.facts.labels)
        scores, labels = model.run(features, k)
        assert scores.shape == labels.shape == (3, k)
        assert ((scores >= 0) & (scores <= 1)).all()
        assert ((labels >= 0) & (labels < model.facts.labels)).all()

    return FuzzedReader(make, read, 1024, 256)


def _small(**how: Any) -> ModelProto:
    return build_model(inputs=_INPUTS, labels=_LABELS, names=[f"n{label}" for label in range(_LABELS)], **how)


def _change_model(random: Random, model: ModelProto) -> None:
    graph = model.graph
    random.choice(
        (
            lambda: _change_node(random, random.choice(graph.node)),
            lambda: _change_node(random, random.choice(graph.node)),
            lambda: _change_tensor(random, random.choice(graph.initializer)),
            lambda: _change_tensor(random, random.choice(graph.initializer)),
            lambda: _change_value(random, random.choice([*graph.input, *graph.output])),
            lambda: graph.node.pop(random.randrange(len(graph.node))) if len(graph.node) > 1 else None,
            lambda: graph.node.insert(random.randrange(len(graph.node)), _another_node(random, model)),
            lambda: model.opset_import.append(
                helper.make_opsetid(random.choice(TEXTS[:3]), random.choice(NUMBERS[:9]))
            ),
            lambda: setattr(model, "ir_version", random.choice((0, 3, 8, 99, -1))),
            lambda: _change_entry(random, model),
        )
    )()


def _change_node(random: Random, node: Any) -> None:
    what = random.random()
    if what < 0.3 and node.input:
        node.input[random.randrange(len(node.input))] = random.choice((*node.input, *node.output, "k", "", "mean_rgb"))
    elif what < 0.45:
        node.op_type = random.choice(
            ("Identity", "Relu", "Loop", "If", "TopK", "Expand", "Tile", "Gather", "Range", "X")
        )
    elif what < 0.55:
        node.domain = random.choice(("com.microsoft", "ai.onnx.ml", "x", ""))
    elif what < 0.65 and node.output:
        node.output[0] = random.choice(("scores", "labels", "x", "k", ""))
    elif node.attribute:
        random.choice(node.attribute).i = random.choice((-1, *NUMBERS[:13]))
    else:
        node.attribute.append(helper.make_attribute(random.choice(("axis", "to", "alpha")), random.choice((0, 5, "x"))))


def _change_tensor(random: Random, tensor: TensorProto) -> None:
    what = random.random()
    if what < 0.3 and tensor.dims:
        tensor.dims[random.randrange(len(tensor.dims))] = random.choice((-1, *NUMBERS[:13]))
    elif what < 0.5:
        tensor.raw_data = changed_bytes(random, tensor.raw_data)
    elif what < 0.65:
        tensor.data_type = random.randrange(28)
    elif what < 0.75:
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/passwd")
    elif what < 0.85:
        tensor.raw_data = np.full(len(tensor.raw_data) // 4, random.choice((np.nan, np.inf, 1e38)), "<f4").tobytes()
    else:
        tensor.name = random.choice(("k", "x", "", "scores"))


def _change_value(random: Random, value: Any) -> None:
    kind = value.type.tensor_type
    if random.random() < 0.5 and kind.shape.dim:
        random.choice(kind.shape.dim).dim_value = random.choice((-1, *NUMBERS[:13]))
    elif random.random() < 0.5:
        kind.elem_type = random.randrange(28)
    else:
        value.name = random.choice((*TEXTS[:6], "k", "mean_rgb"))


def _another_node(random: Random, model: ModelProto) -> Any:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    kind = random.choice(("ConstantOfShape", "Expand", "Range", "Tile", "Mul", "RandomUniform", "NonZero", "Shape"))
    given = [random.choice(names) for _ in range(random.randrange(4))]
    return helper.make_node(kind, given, [random.choice((*names, "new"))])


def _change_entry(random: Random, model: ModelProto) -> None:
    entry = random.choice(model.metadata_props)
    entry.value = random.choice(("", "0", "-1", "1e9", "9" * 400, "[1,2,3]", "null", "x" * 100_000))


def make_metadata(folder: Path) -> FuzzedReader:
    """What `inspect` prints and `score` says of a file, out of entries of every kind."""
    path = folder / "model.onnx"
    base = _small()
    ranges = {name: [-1.5, 2] for name in _INPUTS}
    known = {entry.key: entry.value for entry in base.metadata_props} | {
        "yt8m.ranges": json.dumps(ranges),
        "yt8m.videos": "1000",
        "yt8m.parity": json.dumps({"bound": 1e-5, "worst": {"score": 1e-7}}),
    }

    def make(random: Random) -> bytes:
        entries = dict(known)
        for _ in range(random.choice((1, 1, 2, 3))):
            name = random.choice(_ENTRIES)
            try:
                value = json.loads(entries.get(name, "null"))
            except (ValueError, RecursionError):
                value = entries[name]
            text = dumped(random, changed_json(random, value))
            entries[name] = (changed_bytes(random, text) if random.random() < 0.2 else text).decode(errors="replace")
        model = ModelProto()
        model.CopyFrom(base)
        del model.metadata_props[:]
        helper.set_model_props(model, entries)
        return model.SerializeToString()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        model = Model.open(str(path), device="cpu", threads=1, batch_size=4)
        assert provenance(model.facts)
        json.loads(inspection._text(model, as_object=True))
        lines = inspection._text(model, as_object=False)
        assert all(line.isprintable() for line in lines.split("\n"))
        lines.encode()

    return FuzzedReader(make, read, 128)
