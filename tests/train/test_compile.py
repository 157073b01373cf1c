"""torch.compile where a recipe asks for it, and with CUDA graphs on one GPU alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.train.shards import recipe, videos
from train.distributed import World
from train.training import Data, Training, _compiled


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What torch.compile is asked, and each step of what it gave."""
    found: list[object] = []

    def compile_(forward: nn.Module, **options: Any) -> Any:
        found.append(options)

        def run(*inputs: torch.Tensor) -> Any:
            found.append("step")
            return forward(*inputs)

        return run

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: found.append("begin"))
    return found


@pytest.mark.parametrize(
    ("device", "size", "expected"),
    [
        ("cpu", 1, [{}, "step", "step"]),
        ("cuda:1", 1, [{"mode": "reduce-overhead"}, "begin", "step", "begin", "step"]),
        ("cuda:1", 8, [{}, "step", "step"]),
    ],
)
def test_cuda_graphs_are_recorded_on_one_gpu(
    device: str, size: int, expected: list[object], calls: list[object]
) -> None:
    forward = _compiled(nn.Linear(3, 2), torch.device(device), World(size=size))
    for _ in range(2):
        assert forward(torch.zeros(4, 3)).shape == (4, 2)
    assert calls == expected


def test_training_compiles_only_where_it_is_asked_to(calls: list[object]) -> None:
    data = Data(videos(40), videos(20, seed=1))
    for compile_, expected in ((False, []), (True, [{}, "step"])):
        run = Training(*recipe("dmrnet", soft=False, compile=compile_), data, torch.device("cpu"), World())
        (inputs, targets), *_ = run.batches(run._order(0).unbind(), 0)
        run._step(inputs, targets, 0)
        assert calls == expected
