"""The inner loops in C; see scorer/native.c. All arrays are C-contiguous."""

from typing import Any

from numpy.typing import NDArray

def records(block: bytearray, size: int, places: NDArray[Any], bad: NDArray[Any], /) -> int: ...
def fill(
    block: bytearray,
    place: int,
    size: int,
    inputs: tuple[tuple[bytes, int], ...],
    rows: tuple[NDArray[Any], ...],
    first: int,
    id_sizes: NDArray[Any],
    label_sizes: NDArray[Any],
    /,
) -> tuple[int, int, bytes, bytes, bool]: ...
def features(
    block: bytearray,
    starts: NDArray[Any],
    stops: NDArray[Any],
    inputs: tuple[tuple[bytes, int], ...],
    known: NDArray[Any],
    at: NDArray[Any],
    lengths: NDArray[Any],
    /,
) -> None: ...
def copy(block: bytearray, at: NDArray[Any], to: NDArray[Any], /) -> bool: ...
def gather(block: bytearray, at: NDArray[Any], sizes: NDArray[Any], /) -> bytes: ...
def count(notes: NDArray[Any], k: int, up_to: NDArray[Any], first: NDArray[Any], histogram: NDArray[Any], /) -> int: ...
def notes(labels: NDArray[Any], scores: NDArray[Any], truth: bytes, sizes: NDArray[Any], /) -> bytes: ...
def keys(ids: bytes, sizes: NDArray[Any], /) -> bytes: ...
def rows(ids: bytes, sizes: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any], /) -> bytes: ...
