"""The compiled loops with arguments that nobody should give them: an error in Python's words, no byte out of bounds.

tests/scorer/kernels/test_sanitized.py runs this with every access to memory checked.
"""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from scorer.kernels.limits import BINS, MAP_DEPTH
from scorer.kernels.packed import metric_record
from tests import shards
from tests.loops import needs_both

pytestmark = needs_both

LABELS, SCORES = np.zeros((2, 3), np.int64), np.zeros((2, 3), np.float32)
HUGE = [-(2**63), -(2**62), -1, 2**31, 2**62, 2**63 - 1]
REFUSALS = (ValueError, TypeError, BufferError, OverflowError, MemoryError)
CALLS = 2000


@pytest.mark.parametrize("sizes", [[1, 5], [-1, 2], [2**62, 2**62], [5, -1]])
def test_sizes_that_do_not_fit_are_refused(sizes: list[int]) -> None:
    from scorer.kernels import native

    given = np.array(sizes, np.int64)
    for call in (
        lambda: native.id_keys(b"abcd", given),
        lambda: native.format_rows(b"abcd", given, LABELS, SCORES),
        lambda: native.metric_records(LABELS, SCORES, b"abcd", given),
        lambda: native.format_rows(b"abcd", np.array([2, 2]), LABELS, SCORES[:1]),
        lambda: native.metric_records(LABELS[:1], SCORES, b"abcd", np.array([2, 2])),
        lambda: native.check_predictions(LABELS, SCORES, 4, 9),
    ):
        with pytest.raises(ValueError, match=r"other sizes|no such rows"):
            call()


def any_buffer(pick: random.Random) -> Any:
    """Something that may be a buffer: of any type, shape and alignment, contiguous or not, writable or not."""
    size = pick.choice([0, 1, 7, 8, 24, 64, 200])
    data = bytearray(pick.randbytes(size + 1))
    array = np.frombuffer(data, np.uint8)[1:]
    kind = pick.choice(["<i8", "<f4", "<i4", "u1", "?", "<f8", "c16"])
    whole = array[: size // np.dtype(kind).itemsize * np.dtype(kind).itemsize].view(kind)  # misaligned
    return pick.choice([
        lambda: whole,
        lambda: whole.copy(),
        lambda: whole[::2],
        lambda: whole.copy().reshape(-1, 1),
        lambda: np.array([pick.choice([*HUGE, 0, 1, 2, 3]) for _ in range(pick.randint(0, 9))], np.int64),
        lambda: bytes(data),
        lambda: data,
        lambda: memoryview(data)[::-1],
        lambda: np.array("text"),
        lambda: None,
    ])()  # fmt: skip


def misaligned(array: NDArray[Any]) -> NDArray[Any]:
    data = bytearray(array.nbytes + 1)
    data[1:] = array.tobytes()
    return np.frombuffer(data, np.uint8)[1:].view(array.dtype).reshape(array.shape)


def any_sizes(pick: random.Random, rows: int, total: int) -> NDArray[np.int64]:
    """Sizes of so many strings, which may have so many bytes in all."""
    cuts = sorted(pick.randint(0, total) for _ in range(max(rows - 1, 0)))
    return np.diff([0, *cuts, total]).astype(np.int64)[:rows]


def records_and_counts(pick: random.Random, rows: int, k: int) -> list[Any]:
    shapes = (min(k, MAP_DEPTH), min(k, MAP_DEPTH)), k, (2, BINS)
    records = np.frombuffer(pick.randbytes(metric_record(k).itemsize * rows), metric_record(k))
    return [records, k, *(np.full(shape, pick.choice([0, 2**63 - 1])) for shape in shapes)]


def good_calls(pick: random.Random) -> dict[str, Callable[[], list[Any]]]:
    """Arguments of each function that fit together, except for what is drawn to be out of bounds here and there."""
    rows, k, bytes_ = pick.randint(0, 5), pick.randint(0, 12), pick.randint(0, 200)
    labels = np.array([pick.choice([0, 5, 3861, *HUGE]) for _ in range(rows * k)], np.int64).reshape(rows, k)
    scores = np.array([pick.choice([0, 0.5, 1, -1, np.nan, np.inf]) for _ in range(rows * k)], np.float32)
    data, sizes = pick.randbytes(bytes_), any_sizes(pick, rows, bytes_)
    width = pick.choice([3, 3, 3, 3, 0, -1, 2**40, 2**62])
    return {
        "id_keys": lambda: [data, sizes],
        "format_rows": lambda: [data, sizes, labels, scores.reshape(rows, k)],
        "metric_records": lambda: [labels, scores.reshape(rows, k), data, sizes],
        "count_unknown": lambda: [data, pick.choice([0, 4000, *HUGE])],
        "check_predictions": lambda: [labels, scores.reshape(rows, k), rows, pick.choice([0, 4000, *HUGE])],
        "count_metrics": lambda: records_and_counts(pick, rows, max(k, 1)),
        "sum_frames": lambda: [
            (b"ab" + data[:k]) * pick.choice([0, 1, 5, 600]),
            b"ab",
            pick.choice([0, 0, 2, *HUGE]),
            pick.choice([0, 3, 700, *HUGE]),
            np.zeros(min(k, bytes_), np.uint32),
        ],
        "decode": lambda: decode_arguments(pick, rows, b"x", width),
        "decode_frames": lambda: decode_arguments(pick, rows, pick.choice([b"mean_x"] * 9 + [b"mean_", b"x"]), width),
        "decode_bare_frames": lambda: decode_arguments(pick, rows, b"mean_x", width),
    }


def decode_arguments(pick: random.Random, rows: int, name: bytes, width: int) -> list[Any]:
    """All but the file's descriptor and where records start and end in it."""
    return [
        bytearray(pick.choice([0, 1, 50, 500, 5000])),
        ((name, width),) * pick.choice([1, 1, 1, 0, 2, 64, 65]),
        (np.empty((rows, 3), np.float32),),
        pick.choice([0, 0, 0, 1, *HUGE]),
        pick.choice([rows, rows, rows, 1, *HUGE]),
        np.zeros((4, rows), np.int64),
        pick.choice([0, 1, 10_000, *HUGE]),
    ]


def frames_of_three(count: int) -> dict[str, NDArray[np.uint8]]:
    return {"x": np.full((count, 3), 255, np.uint8)}


def spoil(pick: random.Random, given: list[Any]) -> None:
    """Put something else in some of the places, or the same misaligned."""
    for i, value in enumerate(given):
        if pick.random() < 0.15:
            given[i] = any_buffer(pick) if not isinstance(value, int) else pick.choice([*HUGE, 0, 1, 2.5, "a"])
        elif isinstance(value, np.ndarray) and pick.random() < 0.3:
            given[i] = misaligned(value)


@pytest.mark.parametrize("seed", range(4))
def test_hostile_arguments(seed: int) -> None:
    from scorer.kernels import native

    pick, answered = random.Random(seed), 0
    payloads = [shards.example(f"id{i}", [i, 300], {"x": [1.0] * 3, "more": [2.0]}) for i in range(5)]
    sequences = [shards.sequence_example(f"id{i}", [i, 300], frames_of_three(i + 1)) for i in range(5)]
    with tempfile.TemporaryFile() as examples, tempfile.TemporaryFile() as frames:
        examples.writelines(map(shards.frame, payloads))
        frames.writelines(map(shards.frame, sequences))
        examples.flush()
        frames.flush()
        for _ in range(CALLS):
            name, make = pick.choice([*good_calls(pick).items()])
            given = make()
            if name.startswith("decode"):
                places = [pick.choice(some) for some in ([0, 0, 0, 1, *HUGE], *[[1000, 10_000, *HUGE]] * 2)]
                given[:0] = [(examples if name == "decode" else frames).fileno(), *places]
            if pick.random() < 0.7:
                spoil(pick, given)
            with suppress(*REFUSALS):
                getattr(native, name)(*given)
                answered += 1
    assert CALLS / 10 < answered < CALLS, "too few calls get past the first check"


@contextmanager
def changing(*arrays: NDArray[Any], to: Callable[[random.Random], Any]) -> Iterator[None]:
    """Another thread writes into the arrays all the while."""
    done, pick = threading.Event(), random.Random(0)

    def change() -> None:
        while not done.is_set():
            for array in arrays:
                array[pick.randrange(len(array))] = to(pick)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


ROWS, K = 20_000, 3


def test_sizes_that_another_thread_changes() -> None:
    from scorer.kernels import native

    sizes, labels, scores = np.full(ROWS, 11), np.ones((ROWS, K), np.int64), np.full((ROWS, K), 0.5, np.float32)
    data = b"\1" * int(sizes.sum())
    with changing(sizes, to=lambda pick: pick.choice([11, 11, 10, 5_000, 10**6, -1, *HUGE])):
        for _ in range(50):
            for call in (
                lambda: native.format_rows(data, sizes, labels, scores),
                lambda: native.metric_records(labels, scores, data, sizes),
                lambda: native.id_keys(data, sizes),
            ):
                sizes[:] = 11
                with suppress(ValueError):
                    call()


def test_predictions_that_another_thread_changes() -> None:
    from scorer.kernels import native

    sizes, labels, scores = np.full(ROWS, 11), np.ones(ROWS * K, np.int64), np.full(ROWS * K, 0.5, np.float32)
    truth: Any = np.full(ROWS * 11, 1, np.uint8)
    with (
        changing(labels, to=lambda pick: pick.choice([1, *HUGE])),
        changing(scores, to=lambda pick: pick.choice([0.5, 1, -1, np.nan, 1e38])),
        changing(truth, to=lambda pick: pick.choice([1, 0x80, 0x22, 0x3D])),
    ):
        for _ in range(20):
            for call in (
                lambda: native.format_rows(truth, sizes, labels, scores),
                lambda: native.metric_records(labels, scores, truth, sizes),
                lambda: native.count_unknown(truth, 9),
                lambda: native.check_predictions(labels, scores, ROWS, 9),
            ):
                scores[:] = 0.5
                with suppress(ValueError):
                    call()


@pytest.mark.parametrize("kind", ["decode", "decode_frames"])
def test_a_block_and_rows_that_another_thread_changes(kind: str) -> None:
    from scorer.kernels import native

    name = b"x" if kind == "decode" else b"mean_x"
    payloads = [
        shards.example(f"id{i}", [i, 300], {"x": [1.0] * 3})
        if kind == "decode"
        else shards.sequence_example(f"id{i}", [i, 300], frames_of_three(20))
        for i in range(2000)
    ]
    block: Any = np.zeros(1 << 17, np.uint8)
    sizes, rows = np.zeros((4, 2000), np.int64), np.zeros((2000, 3), np.float32)
    with tempfile.TemporaryFile() as file:
        file.writelines(map(shards.frame, payloads))
        file.flush()
        size = file.tell()
        with (
            changing(block, to=lambda pick: pick.choice([0, 1, 0x0A, 0x12, 0x7F, 0xFF])),
            changing(sizes[0], to=lambda pick: pick.choice(HUGE)),
        ):
            for _ in range(50):
                found = getattr(native, kind)(
                    file.fileno(), 0, size, size, memoryview(block), ((name, 3),), (rows,), 0, 2000, sizes, 10**6
                )
                assert 0 <= found[0] <= 2000
