"""What a library has kernels for, read off its fat binaries, and which GPUs that serves."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from scorer.errors import DeviceError
from scorer.model import driver
from scorer.model.driver import Kernels, read_driver, read_kernels


def fat_binary(*pieces: tuple[int, int], code: int = 40) -> bytes:
    """Pieces of (kind, architecture), with a header of 64 bytes and `code` bytes each, as nvcc writes them."""
    entries = [struct.pack("<HHIQ12xI32x", kind, 0x101, 64, code, arch) + bytes(code) for kind, arch in pieces]
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, sum(map(len, entries))) + b"".join(entries)


def test_the_kernels_of_a_library(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(bytes(100) + fat_binary((2, 75), (2, 80)) + bytes(9) + fat_binary((2, 90), (1, 90)) + bytes(5))
    assert read_kernels(library) == Kernels(frozenset({75, 80, 90}), frozenset({90}))
    for cut in range(100, library.stat().st_size, 7):
        (tmp_path / "cut.so").write_bytes(library.read_bytes()[:cut])
        assert read_kernels(tmp_path / "cut.so").capabilities <= {75, 80, 90}


@pytest.mark.parametrize(
    ("capability", "served"), [(70, False), (75, True), (80, True), (87, True), (89, True), (90, True), (100, False)]
)
def test_kernels_serve_their_generation(capability: int, served: bool) -> None:
    assert Kernels(frozenset({75, 80, 86, 90})).serve(capability) == served


def test_ptx_serves_whatever_is_newer() -> None:
    kernels = Kernels(frozenset({80}), frozenset({90}))
    assert [kernels.serve(capability) for capability in (75, 80, 90, 100, 120)] == [False, True, True, True, True]


def test_a_machine_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "DRIVERS", ("libcuda.so.absent",))
    with pytest.raises(DeviceError, match="there is no driver of NVIDIA's; install it"):
        read_driver()
