"""Somebody else's engine: the programs of docs/scale.md, each run by an environment that has its engine.

YT8M_BEAM_PYTHON, YT8M_DASK_PYTHON and YT8M_SPARK_PYTHON name the Pythons of these; `.ci/run` has the lines that make
them. Spark needs Java too, in JAVA_HOME or on the PATH.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import onnx_models
from tests.scorer.fakes import INPUTS, LABELS, files_of, write_shards

ROOT = Path(__file__).parents[3]
COUNTS = [700, 300, 1, 900, 19]  # videos of the shards


@dataclass(frozen=True)
class Engine:
    """An engine's environment, and the folder that its program runs in."""

    python: str
    folder: Path

    def run(self, *arguments: str) -> None:
        spark = {"PYSPARK_PYTHON": self.python, "SPARK_LOCAL_IP": "127.0.0.1"}
        environment = {**os.environ, **spark, "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        done = subprocess.run(
            [self.python, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr

    def score(self, output: str) -> None:
        """The same job as one run of the command, in the same environment."""
        (self.folder / output).parent.mkdir(exist_ok=True)
        self.run("-m", "yt8m", "score", "shards", "-o", output, "--device", "cpu", "--quiet")

    def run_example(self, title: str) -> None:
        """Run the block of docs/scale.md whose first comment begins so."""
        text = (ROOT / "docs" / "scale.md").read_text()
        (block,) = re.findall(rf"```python\n(# {title}: .*?)```", text, re.DOTALL)
        (self.folder / "example.py").write_text(block)
        self.run("example.py")


@pytest.fixture
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    """The engine that the test names, in a folder with shards and models/default.onnx."""
    variable = f"YT8M_{request.param}_PYTHON"
    if not (python := os.environ.get(variable)):
        pytest.skip(f"{variable} names no environment with the engine")
    write_shards(tmp_path / "shards", COUNTS)
    (tmp_path / "models").mkdir()
    onnx_models.save_model(tmp_path / "models" / "default.onnx", inputs=INPUTS, labels=LABELS)
    return Engine(python, tmp_path)


@pytest.mark.parametrize(
    ("engine", "title"), [("BEAM", "Apache Beam"), ("DASK", "Dask")], indirect=["engine"], ids=["beam", "dask"]
)
def test_parts_of_another_engine_merge_to_the_bytes_of_one_run(engine: Engine, title: str) -> None:
    engine.score("whole/preds.csv")
    engine.run_example(title)
    made = files_of(engine.folder / "preds.csv")
    assert len(made["preds.csv"].splitlines()) == 1 + sum(COUNTS)
    assert made == files_of(engine.folder / "whole" / "preds.csv")


@pytest.mark.parametrize("engine", ["SPARK"], indirect=True, ids=["spark"])
def test_parts_of_spark_are_the_rows_of_one_run(engine: Engine) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    engine.score("whole/preds.parquet")
    engine.run_example("Spark")
    parts = sorted((engine.folder / "preds.parquet").glob("part-*.parquet"))
    rows = [row for part in parts for row in parquet.read_table(part).to_pylist()]
    assert len(rows) == sum(COUNTS)
    assert rows == parquet.read_table(engine.folder / "whole" / "preds.parquet").to_pylist()
