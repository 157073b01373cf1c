"""What a checkpoint says about the videos that it was trained on: how many, and between which values."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scorer.errors import ModelError
from train.config import parse_object
from train.data import Videos

_LOOKED_AT = 50_000
"""Videos whose values are looked at, at most, evenly spread."""


@dataclass(frozen=True)
class TrainedOn:
    """videos: how many. ranges: of each input the least and the greatest value of any feature, widened to 3 digits."""

    videos: int
    ranges: Mapping[str, tuple[float, float]]

    def to_json(self) -> str:
        """One line with sorted keys: equal facts give equal text."""
        return json.dumps({"videos": self.videos, "ranges": self.ranges}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> TrainedOn:
        """The reverse of to_json. Raises ModelError for anything else."""
        try:
            found = parse_object(text)
            ranges = {str(name): (float(low), float(high)) for name, (low, high) in found["ranges"].items()}
            if not all(map(math.isfinite, (value for pair in ranges.values() for value in pair))):
                raise ValueError("a range that is not finite")
            return TrainedOn(int(found["videos"]), ranges)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ModelError(f"not a description of training videos: {error}") from error


def trained_on(videos: Videos, inputs: Sequence[tuple[str, int]]) -> TrainedOn:
    """The facts of `videos`, whose features are those of `inputs` in their order."""
    step = max(1, math.ceil(len(videos) / _LOOKED_AT))
    ranges = {}
    for (name, _), values in zip(inputs, videos.features, strict=True):
        rows = values[::step]
        ranges[name] = (-_up(-float(rows.min())), _up(float(rows.max())))
    return TrainedOn(len(videos), ranges)


def _up(value: float) -> float:
    """The next number of three significant digits."""
    if value == 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(abs(value))) - 2)
    return float(f"{math.ceil(value / unit) * unit:.3g}")
