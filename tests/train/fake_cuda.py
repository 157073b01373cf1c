"""A CUDA of two GPUs that computes nothing: what is asked of it is noted, with the device that it is asked of.

Tensors "on" it are CPU tensors, so that what arrives there can be compared.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

GPUS = 2
FREE = 10_000
"""Bytes that are free on each."""


@dataclass(frozen=True)
class Copy:
    """A copy to a GPU. from_pinned: whether it came from page-locked memory. stream: the one that it was put on."""

    device: torch.device
    from_pinned: bool
    non_blocking: bool
    stream: str


class Stream:
    """A stream that remembers what it waited for."""

    def __init__(self, device: torch.device, name: str = "side") -> None:
        self.device, self.name, self.waited = device, name, list[str]()

    def record_event(self) -> str:
        return f"after {self.name}"

    def wait_event(self, event: str) -> None:
        self.waited.append(event)


@dataclass
class FakeCuda:
    """copies: all so far. asked: every other question, and the device that was current then. used_on: record_stream."""

    copies: list[Copy] = field(default_factory=list)
    asked: list[tuple[str, int]] = field(default_factory=list)
    used_on: list[str] = field(default_factory=list)
    thread: threading.local = field(default_factory=threading.local)
    free: int = FREE
    capability: tuple[int, int] = (9, 0)
    main: Stream = field(default_factory=lambda: Stream(torch.device("cuda", 1), "main"))

    @property
    def current(self) -> int:
        """The calling thread's device: as in CUDA the first, until it says otherwise."""
        return getattr(self.thread, "device", 0)

    def set_device(self, device: torch.device) -> None:
        self.thread.device = device.index

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        before = self.current
        self.set_device(device)
        yield
        self.thread.device = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.thread.stream = stream
        yield
        self.thread.stream = self.main

    def ask(self, what: str, answer: Any) -> Callable[..., Any]:
        def asked(**options: object) -> Any:
            self.asked.append((what, self.current))
            return answer

        return asked

    def pin(self, tensor: Tensor) -> Tensor:
        self.asked.append(("pin_memory", self.current))
        pinned = tensor.clone()
        pinned.is_page_locked = True  # type: ignore[attr-defined]
        return pinned

    def to(self, tensor: Tensor, device: torch.device, non_blocking: bool) -> Tensor:
        stream = getattr(self.thread, "stream", self.main)
        self.copies.append(Copy(device, hasattr(tensor, "is_page_locked"), non_blocking, stream.name))
        return tensor.clone()


def install(patch: pytest.MonkeyPatch) -> FakeCuda:
    """Put one in the place of PyTorch's until the test ends."""
    fake = FakeCuda()
    real_to: Any = Tensor.to

    def to(tensor: Tensor, *given: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        if given and isinstance(given[0], torch.device) and given[0].type == "cuda":
            moved = fake.to(tensor, given[0], non_blocking)
            return real_to(moved, *given[1:], **options) if given[1:] or options else moved
        return real_to(tensor, *given, non_blocking=non_blocking, **options)

    def mem_get_info(device: torch.device) -> tuple[int, int]:
        return fake.free, fake.free

    for name, replacement in {
        "is_available": lambda: True,
        "device_count": lambda: GPUS,
        "set_device": fake.set_device,
        "device": fake.device,
        "stream": fake.stream,
        "Stream": Stream,
        "current_stream": lambda device: fake.main,
        "mem_get_info": mem_get_info,
        "is_bf16_supported": lambda **options: fake.ask("is_bf16_supported", fake.capability >= (8, 0))(),
        "get_device_capability": lambda device: fake.capability,
    }.items():
        patch.setattr(torch.cuda, name, replacement)
    patch.setattr(Tensor, "to", to)
    patch.setattr(Tensor, "pin_memory", lambda tensor: fake.pin(tensor))
    patch.setattr(Tensor, "record_stream", lambda tensor, stream: fake.used_on.append(stream.name))
    return fake
