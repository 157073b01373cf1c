"""What PyTorch does slowly on a CPU in training, done faster: dropout, the gradient of a Dense layer's weights, memory.

The first two compute what PyTorch's own modules compute, and take their place in a model for as long as it trains, so
that the models, their checkpoints and their export know nothing of them.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn


def optimize_for_cpu(model: nn.Module, *, bf16: bool) -> None:
    """Put the layers of this file in the place of the model's Dropout and, where it trains in bfloat16, Linear layers.

    The parameters stay the very same objects.
    """
    for name, module in list(model.named_modules()):
        if type(module) is nn.Dropout:
            model.set_submodule(name, ByteDropout(module.p))
        elif type(module) is nn.Linear and bf16:
            model.set_submodule(name, TransposedLinear.of(module))


def keep_freed_memory() -> None:
    """Have the C library keep what tensors of up to 32 MB give back for the next ones, in this process from now on.

    The GNU C library soon hands freed memory back to the system, which must clear each page of it again when it is
    needed again a moment later: a fifth of a training step. Other libraries have no such switch and are left alone.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most there can be; what is larger is always handed back
        mallopt(_M_TRIM_THRESHOLD, -1)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


class ByteDropout(nn.Dropout):
    """Dropout that draws one byte a unit, so its probability is rounded to a multiple of 1/256 (and the scale with it).

    PyTorch draws a float a unit, and all of them in one thread: a sixth of a BiLSTM's training step on two cores.
    """

    def forward(self, x: Tensor) -> Tensor:
        threshold = round(256 * self.p)
        if not self.training or not threshold:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= threshold
        return torch.where(kept, x * (256 / (256 - threshold)), 0)


class TransposedLinear(nn.Linear):
    """A Dense layer whose backward pass transposes the gradient in memory before the product that gives the weights'
    gradient, which in bfloat16 takes twice the time when it is read across its rows."""

    @classmethod
    def of(cls, linear: nn.Linear) -> TransposedLinear:
        """One with the parameters of `linear`."""
        made = cls(linear.in_features, linear.out_features, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        return _Linear.apply(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)
    def forward(ctx: Any, x_BF: Tensor, weight_UF: Tensor, bias_U: Tensor) -> Tensor:
        ctx.save_for_backward(x_BF, weight_UF)
        return nn.functional.linear(x_BF, weight_UF, bias_U)

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient_BU: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:  # type: ignore[override]
        x_BF, weight_UF = ctx.saved_tensors
        gradient_x_BF = gradient_BU @ weight_UF if ctx.needs_input_grad[0] else None
        return gradient_x_BF, gradient_BU.t().contiguous() @ x_BF, gradient_BU.sum(0)
