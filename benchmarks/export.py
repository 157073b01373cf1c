"""Every exported precision of every model against the plain export of the same checkpoint, in one run.

    python -m benchmarks.export --runs runs --calibrate '../shared/data/yt8m/validate00*.tfrecord' \\
        --check '../shared/data/yt8m/validate01[23]*.tfrecord'

Rounds alternate between all files and two peaks, so that a slow minute hits everyone; printed are medians. A peak is
what one large matrix product reaches in the same runtime, with as many threads: fp32 for fp32 files, uint8 by int8 for
int8 files. The share of it counts the exported graph's own operations, elementwise ones included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from benchmarks.machine import machine
from export.build import convert, trace_checkpoint, write
from export.parity import in_batches
from export.plain import plain_export
from export.timing import measure
from export.videos import VideoSample, read_videos
from scorer.errors import Yt8mError
from scorer.evaluation.metrics import exact_metrics
from scorer.inputs.discover import find_shards
from scorer.inputs.source import Source
from scorer.model.model import Model
from scorer.model.predictor import Predictor
from scorer.model.runtime import import_runtime
from train.checkpoint import load
from train.registry import names

SIZE = 2048
"""Rows and columns of the peaks' matrices."""


class Peak:
    """One product of two large matrices, in the shape of a model so that it takes part in the same rounds."""

    def __init__(self, integers: bool) -> None:
        onnxruntime = import_runtime()
        random = np.random.default_rng(0)
        left = random.integers(0, 255, (SIZE, SIZE)).astype(np.uint8 if integers else np.float32)
        right = random.integers(-64, 64, (SIZE, SIZE)).astype(np.int8 if integers else np.float32)
        kind = TensorProto.UINT8 if integers else TensorProto.FLOAT
        node = helper.make_node("MatMulInteger" if integers else "MatMul", ["x", "w"], ["y"])
        x = helper.make_tensor_value_info("x", kind, [SIZE, SIZE])
        y = helper.make_tensor_value_info("y", TensorProto.INT32 if integers else TensorProto.FLOAT, [SIZE, SIZE])
        graph = helper.make_graph([node], "peak", [x], [y], [numpy_helper.from_array(right, "w")])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = machine_threads()
        data = model.SerializeToString()
        self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        self._feed = {"x": left}

    def run(self, features: Mapping[str, NDArray[np.float32]], k: int = 0) -> Any:
        return self._session.run(None, self._feed)


def machine_threads() -> int:
    """As many as Model.open uses."""
    from scorer.system.cores import usable_cores

    return usable_cores()


def bench(
    runs: Path, check: Sequence[Source], calibrate: Sequence[Source], batch: int, seconds: float
) -> list[list[str]]:
    """The table's rows, model by model."""
    rows = []
    for name in names():
        if (runs / name / "best.safetensors").exists():
            rows += bench_model(runs / name / "best.safetensors", check, calibrate, batch, seconds)
    return rows


def bench_model(
    checkpoint: Path, check: Sequence[Source], calibrate: Sequence[Source], batch: int, seconds: float
) -> list[list[str]]:
    """One model's rows: plain, fp32, fp16, int8."""
    traced = trace_checkpoint(load(checkpoint))
    videos = read_videos(check, traced.inputs)
    ranges = read_videos(calibrate, traced.inputs, limit=4096)
    assert traced.reduced is not None
    with tempfile.TemporaryDirectory() as folder:
        protos = {"plain": plain_export(traced.model, traced.checkpoint.config.inputs, traced.metadata)}
        protos |= {precision: convert(traced, precision, ranges) for precision in ("fp32", "fp16", "int8")}
        sizes = {name: write(Path(folder) / f"{name}.onnx", proto) for name, proto in protos.items()}
        del protos
        models = {name: Model.open(f"{folder}/{name}.onnx", device="cpu", threads=machine_threads()) for name in sizes}
    peaks = {"peak fp32": Peak(integers=False), "peak int8": Peak(integers=True)}
    rates = measure({**models, **peaks}, videos, batch, seconds)
    reached = {name: rates[name] * 2 * SIZE**3 / batch for name in peaks}
    quality, overlap = _quality(models, videos)
    rows = []
    for name in models:
        peak = reached["peak int8" if name == "int8" else "peak fp32"]
        flops = traced.graph.flops() if name == "plain" and traced.graph else traced.reduced.flops()
        rows.append(
            [
                traced.checkpoint.config.name,
                name,
                f"{rates[name]:,.0f}",
                f"{rates[name] / rates['plain']:.2f}",
                f"{rates[name] * flops / 1e9:,.0f} of {peak / 1e9:,.0f}: {rates[name] * flops / peak:.0%}",
                f"{sizes[name] / 1e6:.1f}",
                f"{quality[name]:.4f}",
                f"{overlap[name]:.2%}",
            ]
        )
    return rows


def _quality(models: Mapping[str, Predictor], videos: VideoSample) -> tuple[dict[str, float], dict[str, float]]:
    """MAP@10 of each model, and its top-10's overlap with the plain export's."""
    quality, overlap, plain = {}, {}, None
    for name, model in models.items():
        scores, labels = in_batches(model, videos.features, 1024, 10)
        plain = labels if plain is None else plain
        metrics = exact_metrics(labels, scores, videos.label_values, videos.label_splits)
        quality[name] = metrics.get("MAP@10", float("nan"))
        overlap[name] = float((plain[:, :, None] == labels[:, None, :]).any(axis=2).mean())
    return quality, overlap


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.export", description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--check", nargs="+", required=True, metavar="SHARD")
    parser.add_argument("--calibrate", nargs="+", required=True, metavar="SHARD")
    parser.add_argument("--batch", type=int, default=512, help="videos per run of a model [512]")
    parser.add_argument("--seconds", type=float, default=5.0, help="of measuring per file [5]")
    options = parser.parse_args()
    try:
        check, calibrate = find_shards(options.check), find_shards(options.calibrate)
        rows = bench(options.runs, check, calibrate, options.batch, options.seconds)
    except Yt8mError as error:
        print(f"benchmarks.export: {error}", file=sys.stderr)
        return error.exit_code
    columns = ("model", "file", "videos/s", "x plain", "GFLOP/s of peak", "MB", "MAP@10", "top-10 kept")
    table = Table(*columns, title=machine())
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
