"""Which device a run takes, and that a GPU is never asked for anything before it is the thread's own."""

from __future__ import annotations

import pytest
import torch

from scorer.errors import DeviceError
from tests.train import fake_cuda
from tests.train.fake_cuda import FakeCuda
from train.devices import bf16_is_fast, choose_device, fast_half


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    return fake_cuda.install(monkeypatch)


@pytest.mark.parametrize(("name", "local", "index"), [("cuda:1", 0, 1), ("cuda", 1, 1), ("auto", 0, 0)])
def test_the_chosen_gpu_is_the_threads_own(name: str, local: int, index: int, cuda: FakeCuda) -> None:
    assert choose_device(name, local) == torch.device("cuda", index)
    assert cuda.current == index
    assert cuda.asked == []


def test_float32_on_a_gpu_is_float32(cuda: FakeCuda) -> None:
    choose_device("cuda:1", 0)
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_what_a_gpu_can_is_asked_of_that_gpu(cuda: FakeCuda) -> None:
    assert bf16_is_fast(torch.device("cuda", 1))
    assert cuda.asked == [("is_bf16_supported", 1)]
    assert cuda.current == 0


@pytest.mark.parametrize(
    ("capability", "half"), [((9, 0), torch.bfloat16), ((7, 5), torch.float16), ((7, 0), torch.float16), ((6, 1), None)]
)
def test_gpus_without_bfloat16_train_in_float16(
    capability: tuple[int, int], half: torch.dtype | None, cuda: FakeCuda
) -> None:
    cuda.capability = capability
    assert fast_half(torch.device("cuda", 1)) is half


@pytest.mark.parametrize("name", ["cuda:2", "cuda:x", "gpu", "cuda:-1"])
def test_other_devices_are_refused(name: str, cuda: FakeCuda) -> None:
    with pytest.raises(DeviceError):
        choose_device(name, 0)
    assert choose_device("cpu", 1) == torch.device("cpu")
    assert cuda.current == 0
