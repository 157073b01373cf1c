"""Memory of this process."""

from __future__ import annotations

import contextlib

_M_MMAP_THRESHOLD, _LARGE = -3, 1 << 20  # malloc.h; at glibc's first 128 KB each batch would map and unmap its blocks


def give_memory_back() -> None:
    """Have the C library return large blocks to the system when they are freed; for processes that are ours alone.

    glibc keeps blocks of up to 32 MB once it has seen some freed (mallopt(3), M_MMAP_THRESHOLD), and ONNX Runtime frees
    each weight when it has repacked it: 41 MB of the report's BiLSTM would stay.
    """
    with contextlib.suppress(AttributeError, ImportError, OSError, TypeError):  # another C library, or no ctypes
        import ctypes

        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE)
