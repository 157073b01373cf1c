"""Where the nodes of exported files run on CUDA, by the real provider on stand-ins for NVIDIA's libraries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from export.build import convert, trace_checkpoint, write
from export.videos import random_videos
from tests.cuda_stub import CudaStub, needs_provider
from tests.export.small import small_checkpoint

pytestmark = needs_provider

WHERE = """
import json, sys
from scorer.model.model import Model
from scorer.model.runtime import import_runtime, open_cuda

nodes = {}
for part in open_cuda(import_runtime(), sys.argv[1], 0, tf32=False).get_provider_graph_assignment_info():
    nodes.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
model = Model.open(sys.argv[1], device="cuda", batch_size=64)
print(json.dumps(nodes))
"""


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["bilstm", "lstm", "lstm-l2", "dmrnet", "dmrnet-fisher"])
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
