"""The loops in C. All arrays are C-contiguous; scorer.kernels.loops says what each gives."""

from typing import Any

from numpy.typing import NDArray

LIMITS: dict[str, int]
"""The limits that it was compiled with: scorer.kernels.limits."""

def decode(
    file: int,
    offset: int,
    stop: int,
    end: int,
    block: memoryview,
    inputs: tuple[tuple[bytes, int], ...],
    features: tuple[NDArray[Any], ...],
    first: int,
    last: int,
    sizes: NDArray[Any],
    enough: int,
    /,
) -> tuple[int, bytes, bytes, int, bool, int | None]: ...
def find_header(data: memoryview, /) -> int: ...
def check_predictions(labels: NDArray[Any], scores: NDArray[Any], rows: int, label_count: int, /) -> int: ...
def count_metrics(
    records: NDArray[Any], k: int, up_to: NDArray[Any], first: NDArray[Any], histogram: NDArray[Any], /
) -> int: ...
def metric_records(labels: NDArray[Any], scores: NDArray[Any], truth: bytes, sizes: NDArray[Any], /) -> bytes: ...
def count_unknown(truth: bytes, label_count: int, /) -> int: ...
def id_keys(ids: bytes, sizes: NDArray[Any], /) -> bytes: ...
def format_rows(ids: bytes, sizes: NDArray[Any], labels: NDArray[Any], scores: NDArray[Any], /) -> bytes: ...
def crc32c(data: bytes | bytearray | memoryview, crc: int = 0, /) -> int: ...
def sum_frames(frames: memoryview, header: bytes, first: int, last: int, sums: NDArray[Any], /) -> int: ...
