"""Many short strings of bytes as one: what the compiled loops take, and what costs no object for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PackedStrings:
    """n strings, one after the other in `data`. sizes: int64 (n,)."""

    data: bytes
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.sizes)

    @classmethod
    def of(cls, strings: Sequence[bytes]) -> PackedStrings:
        return cls(b"".join(strings), np.array([*map(len, strings)], np.int64))

    def split(self) -> list[bytes]:
        return [self.data[start:stop] for start, stop in pairwise([0, *np.cumsum(self.sizes).tolist()])]
