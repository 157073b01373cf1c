"""How batches come to a device: their rows are test_data.py's; here, that nobody waits for a GPU meanwhile."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.train import fake_cuda
from tests.train.fake_cuda import Copy
from tests.train.shards import recipe, videos
from train import training
from train.data import Videos
from train.distributed import World
from train.evaluate import evaluate
from train.gather import TRAIN_SHARE, VALID_SHARE, Resident, Streamed, placed, sent
from train.registry import build
from train.training import Data, Training

CPU, GPU = torch.device("cpu"), torch.device("cuda", 1)
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal")
"""What PyTorch has to know of a tensor's values before it can continue: item(), bool(), masks as indices."""


def test_copies_to_a_gpu_come_from_page_locked_memory_and_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda.install(monkeypatch)
    assert sent(torch.arange(3), GPU).tolist() == [0, 1, 2]
    assert cuda.copies == [Copy(GPU, from_pinned=True, non_blocking=True, stream="main")]


def test_streamed_batches_are_copied_beside_the_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, made = fake_cuda.install(monkeypatch), videos(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0)).split(11)
    batches = list(Streamed(made, GPU).batches(order))
    for rows, (inputs, labels) in zip(order, batches, strict=True):
        assert torch.equal(labels, torch.from_numpy(made.labels)[rows])
        for values, feature in zip(inputs, made.features, strict=True):
            assert torch.equal(values, torch.from_numpy(feature)[rows])
    parts = 3 * len(order)
    assert cuda.copies == [Copy(GPU, from_pinned=True, non_blocking=True, stream="side")] * parts
    assert cuda.asked == [("pin_memory", 1)] * parts
    assert cuda.main.waited == ["after side"] * len(order)
    assert cuda.used_on == ["main"] * parts


def test_held_out_videos_take_a_little_of_a_gpu_and_are_streamed_beyond_that(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.install(monkeypatch)
    many, few = videos(100), videos(10)  # 4,800 and 480 bytes
    assert type(placed(many, GPU, TRAIN_SHARE)) is Resident
    assert type(placed(many, GPU, VALID_SHARE)) is Streamed
    assert type(placed(few, GPU, VALID_SHARE)) is Resident
    assert type(placed(many, CPU, VALID_SHARE)) is Resident


def test_a_training_places_its_videos_by_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, float]] = []

    def noted(made: Videos, device: torch.device, share: float, *half: torch.dtype) -> Resident | Streamed:
        asked.append((len(made), share))
        return placed(made, device, share, *half)

    monkeypatch.setattr(training, "placed", noted)
    Training(*recipe("dmrnet", soft=False), Data(videos(100), videos(20, seed=1)), CPU, World())
    assert asked == [(100, TRAIN_SHARE), (20, VALID_SHARE)]


def test_streamed_videos_are_evaluated_to_the_same_figures() -> None:
    model, held = build(recipe("dmrnet")[0]), videos(50)
    assert evaluate(model, Streamed(held, CPU), "listwise") == evaluate(model, Resident(held, CPU), "listwise")


class Waiting(TorchDispatchMode):
    """Counts the operations that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if str(func).startswith(WAITS):
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "settings", [{"mixup": 0.4, "soft": False, "ema": 0.9}, {"soft": True, "precision": "fp16"}], ids=["own", "soft"]
)
def test_no_step_waits_for_the_device(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = Training(*recipe("dmrnet", **settings), Data(videos(100), videos(20, seed=1)), CPU, World())
    run.model.train()
    copies = []

    def counted(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        copies.append(tensor.shape)
        return sent(tensor, device)

    monkeypatch.setattr(training, "sent", counted)
    order = run._order(0)
    with Waiting() as waiting:
        torch.zeros(()).item()
        for step, (inputs, targets) in enumerate(run.batches(order.unbind(), 0)):
            run.state.losses[step] = run._step(inputs, targets, step)
    assert waiting.found == {"aten._local_scalar_dense.default": 1}  # the one above: they are seen
    assert copies == ([] if settings["soft"] else [(order.shape[1], 1)] * len(order))
