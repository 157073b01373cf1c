"""docs/own-data.md: features of other widths and few labels, from shards to scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from export.cli import main as export
from scorer.cli.score import main as score
from tests.shards import example, write_shard
from train.cli import main as train
from yt8m import Scorer


def test_from_shards_to_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    codes = random.normal(size=(5, 16))
    records = []
    for row in range(120):
        values = codes[row % 5] + 0.1 * random.normal(size=16)
        records.append(example(f"own-{row}", [row % 5], {"image": values[:12], "sound": values[12:]}))
    write_shard("train.tfrecord", records)
    given = ["--data", "train.tfrecord", "--inputs", "image:12", "sound:4", "--set", "width=16", "batch=16"]
    assert train(["--model", "dmrnet", "--epochs", "30", *given]) == 0
    assert ", 5 labels (the largest of the videos is 4), " in capsys.readouterr().err
    Path("labels.csv").write_text("Index,Name\n" + "".join(f"{label},name {label}\n" for label in range(5)))
    check = ["--check", "train.tfrecord", "--vocabulary", "labels.csv", "--no-speed"]
    assert export(["--model", "dmrnet", *check]) == 0
    assert score(["train.tfrecord", "--model", "dmrnet", "-o", "preds.csv", "--quiet", "--top-k", "1"]) == 0
    rows = [line.split(",")[1].split()[0] for line in Path("preds.csv").read_text().splitlines()[1:]]
    assert np.mean([int(label) == row % 5 for row, label in enumerate(rows)]) > 0.9
    _, labels = Scorer("models/dmrnet.onnx").score(image=codes[:, :12], sound=codes[:, 12:], k=1)
    assert (labels[:, 0] == np.arange(5)).mean() > 0.7
