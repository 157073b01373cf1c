"""Where the nodes of exported files run on CUDA, by the real provider on stand-ins for NVIDIA's libraries."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from export.build import convert, trace_checkpoint, write
from export.videos import random_videos
from tests.cuda_stub import CudaStub, needs_provider
from tests.export.small import small_checkpoint, write_videos

pytestmark = needs_provider

WHERE = """
import json, sys
from scorer.model.model import Model
from scorer.model.onnx_file import ModelFile
from scorer.model.runtime import import_runtime, open_cuda

nodes = {}
with ModelFile(sys.argv[1]) as file:
    session = open_cuda(import_runtime(), file, 0)
for part in session.get_provider_graph_assignment_info():
    nodes.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
model = Model.open(sys.argv[1], device="cuda", batch_size=64)
print(json.dumps(nodes))
"""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["bilstm", "bilstm-4-steps", "lstm", "lstm-l2", "dmrnet", "dmrnet-fisher"])
def test_every_node_runs_on_cuda(cuda_stub: CudaStub, name: str, precision: str, tmp_path: Path) -> None:
    source = trace_checkpoint(small_checkpoint(name))
    path = tmp_path / "model.onnx"
    write(path, convert(source, precision, random_videos(source.inputs, 1024)))
    done = cuda_stub.run("-c", WHERE, str(path))
    assert done.returncode == 0, done.stderr
    nodes = json.loads(done.stdout)
    print(name, precision, nodes)
    assert set(nodes) == {"CUDAExecutionProvider"}
    assert {"Gemm", "MatMul"} & set(nodes["CUDAExecutionProvider"])


def test_a_recurrent_layer_that_cuda_has_not_is_named(cuda_stub: CudaStub, tmp_path: Path) -> None:
    """An LSTM of several steps with ReLU in the cell, in whatever precision."""
    source, path = trace_checkpoint(small_checkpoint("bilstm-2-steps-relu")), tmp_path / "model.onnx"
    for precision in ("fp32", "fp16"):
        write(path, convert(source, precision, random_videos(source.inputs, 64)))
        done = cuda_stub.run("-c", WHERE, str(path))
        assert done.stderr.splitlines()[-1] == "scorer.errors.DeviceError: CUDA has no kernel for LSTM"


IN_FOLDER = "import os, sys; os.chdir(sys.argv[1]); from scorer.cli.score import main; sys.exit(main(sys.argv[2:]))"


def test_the_default_model_is_taken_in_fp16_on_cuda(cuda_stub: CudaStub, tmp_path: Path) -> None:
    """Where `export --precision all` left it; a file that was asked for by name is the one that is used."""
    checkpoint = small_checkpoint("lstm")
    source = trace_checkpoint(checkpoint)
    videos = random_videos(source.inputs, 1024)
    models = tmp_path / "models"
    models.mkdir()
    for precision, name in (("int8", "default.onnx"), ("fp16", "lstm.fp16.onnx")):
        write(models / name, convert(source, precision, videos))
    shard = write_videos(tmp_path / "a.tfrecord", checkpoint.config, 20)
    command = ["-c", IN_FOLDER, str(tmp_path), shard, "-o", "preds.csv"]
    done = cuda_stub.run(*command)
    assert re.search(r"models/lstm\.fp16\.onnx \(exported .*, in fp16 for CUDA\)", done.stderr)
    assert "int8" not in done.stderr
    named = cuda_stub.run(*command, "--model", "default")
    assert "models/default.onnx (as given)" in named.stderr
    assert "CUDA computes this int8 model in float32; one of fp16 is faster there" in named.stderr
    assert "models/default.onnx (exported " in cuda_stub.run(*command, "--device", "cpu").stderr
    write(models / "lstm.fp16.onnx", convert(trace_checkpoint(small_checkpoint("lstm-l2")), "fp16", videos))
    assert "models/default.onnx (exported " in cuda_stub.run(*command).stderr, "its weights are others"
