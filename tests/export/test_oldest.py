"""Exported files open in the oldest ONNX Runtime that the package allows, and answer there as here.

The second environment is named by YT8M_OLDEST_PYTHON: its Python, with onnxruntime at the floor of pyproject.toml.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from export.build import convert, trace_checkpoint, write
from export.videos import random_videos
from scorer.model.model import Model
from tests.export.small import CONFIGS, small_checkpoint

OLDEST = os.environ.get("YT8M_OLDEST_PYTHON", "")

RUN = """
import json, sys
import numpy as np, onnxruntime
path, features = sys.argv[1], np.load(sys.argv[2])
session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
scores, labels = session.run(["scores", "labels"], {**features, "k": np.array([7])})
print(json.dumps({"version": onnxruntime.__version__, "scores": scores.tolist(), "labels": labels.tolist()}))
"""


@pytest.mark.skipif(not OLDEST, reason="YT8M_OLDEST_PYTHON names no second environment")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_oldest_runtime_gives_the_same_answers(name: str, precision: str, tmp_path: Path) -> None:
    traced = trace_checkpoint(small_checkpoint(name))
    videos = random_videos(traced.inputs, 1024)
    path = tmp_path / "model.onnx"
    write(path, convert(traced, precision, videos))
    np.savez(tmp_path / "features.npz", allow_pickle=False, **videos.features)
    command = [OLDEST, "-W", "ignore", "-c", RUN, str(path), str(tmp_path / "features.npz")]
    old = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    scores, _ = Model.open(str(path), device="cpu").run(videos.features, k=7)
    assert np.abs(np.array(old["scores"]) - scores).max() < (2e-3 if precision == "fp16" else 1e-5)
    print(f"{old['version']} beside {sys.version}")
