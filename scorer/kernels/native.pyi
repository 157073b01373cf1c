"""The inner loops in C; see scorer/kernels/native.c. All arrays are C-contiguous."""

from typing import Any

from numpy.typing import NDArray

def fill(
    file: int,
    offset: int,
    end: int,
    block: memoryview,
    inputs: tuple[tuple[bytes, int], ...],
    rows: tuple[NDArray[Any], ...],
    first: int,
    last: int,
    sizes: NDArray[Any],
    enough: int,
    /,
) -> tuple[int, bytes, bytes, int, bool, int | None]: ...
def count(notes: NDArray[Any], k: int, up_to: NDArray[Any], first: NDArray[Any], histogram: NDArray[Any], /) -> int: ...
def notes(labels: NDArray[Any], scores: NDArray[Any], truth: bytes, sizes: NDArray[Any], /) -> bytes: ...
def keys(ids: bytes, sizes: NDArray[Any], /) -> bytes: ...
def rows(ids: bytes, sizes: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any], /) -> bytes: ...
