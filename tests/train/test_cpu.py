"""The faster layers against PyTorch's own."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from train.cpu import ByteDropout, TransposedLinear, optimize_for_cpu


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5])
def test_dropout_keeps_its_share_and_the_mean(p: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(300, 401, requires_grad=True)
    y = ByteDropout(p)(x)
    dropped = (y == 0).float()
    assert dropped.mean().item() == pytest.approx(p, abs=0.005)
    assert dropped.mean(0).std().item() == pytest.approx((p * (1 - p) / 300) ** 0.5, rel=0.2)
    assert dropped.mean(1).std().item() == pytest.approx((p * (1 - p) / 401) ** 0.5, rel=0.2)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    assert len(y.unique()) == 2
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # type: ignore[arg-type]


def test_dropout_follows_the_seed_and_rests_outside_of_training() -> None:
    layer, x = ByteDropout(0.4), torch.randn(17, 23)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(layer(x))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(ByteDropout(0.0)(x), x)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("input_gradient", [False, True])
def test_linear_gives_the_gradients_of_torchs_own(bf16: bool, input_gradient: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(40, 24)
    quick = TransposedLinear(40, 24)
    quick.load_state_dict(plain.state_dict())
    results = []
    for layer in (plain, quick):
        x = torch.linspace(-1, 1, 16 * 40).view(16, 40).requires_grad_(input_gradient)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            y = layer(x)
        y.float().square().sum().backward()
        results.append([y, layer.weight.grad, layer.bias.grad, *([x.grad] if input_gradient else [])])
    for expected, found in zip(*results, strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-2 if bf16 else 1e-6, atol=1e-2 if bf16 else 1e-5)


def test_optimize_for_cpu_changes_no_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)))
    before, parameters = deepcopy(model.state_dict()), list(model.parameters())
    optimize_for_cpu(model, bf16=True)
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))  # the optimiser's
    assert [type(module) for module in model.modules() if not list(module.children())] == [
        TransposedLinear,
        ByteDropout,
        TransposedLinear,
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library has no mallopt"
)
@pytest.mark.parametrize("keep", [True, False])
def test_freed_memory_is_kept(keep: bool) -> None:
    code = (
        "import sys, torch; from train.cpu import keep_freed_memory; pages = lambda: open('/proc/self/statm').read();"
        "'keep' in sys.argv and keep_freed_memory(); before = pages(); [torch.ones(1 << 22) for _ in range(12)];"
        "print(before + pages(), end='')"
    )
    done = subprocess.run([sys.executable, "-c", code, "keep" * keep], capture_output=True, text=True, check=True)
    before, after = (int(line.split()[1]) for line in done.stdout.splitlines())
    assert (after - before > 10 * 4096) == keep  # of 12 tensors of 4,096 pages each
