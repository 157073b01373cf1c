"""What learning curves and results on disk rest on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cached import cached
from benchmarks.runs import fit, spread, videos_in
from tests.shards import sources
from tests.train.shards import write


def test_fit_finds_the_line_and_what_it_extrapolates_to() -> None:
    line = fit([(1000, 0.5), (2000, 0.52), (4000, 0.54)])
    assert line.slope == pytest.approx(0.02)
    assert line.at(32_000) == pytest.approx(0.6)


def test_spread_is_the_farthest_from_the_mean() -> None:
    assert spread([0.7, 0.71, 0.75]) == "0.7200 ± 0.0300"


def test_videos_in_counts_records(tmp_path: Path) -> None:
    assert [videos_in(shard) for shard in sources([write(tmp_path / "a.tfrecord", 7)])] == [7]


def test_a_kept_result_is_made_once_for_the_same_settings(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> int:
        made.append(1)
        return len(made)

    path = tmp_path / "new" / "result.json"
    assert [cached(path, about, make) for about in (("a", 1), ("a", 1), ("b", 1))] == [1, 1, 2]
