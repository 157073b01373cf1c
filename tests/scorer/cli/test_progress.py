"""What a long job says: a line about every ten seconds where nobody watches, a bar where somebody does."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from scorer.cli.progress import ProgressLines, progress_bar, shown_progress
from scorer.job.spec import Progress
from scorer.system.phases import LINE_SECONDS
from tests.scorer.threads import allow_threads


def lines_of(looks: list[tuple[float, Progress]]) -> list[str]:
    """What is said at these seconds, from 0 on."""
    said: list[str] = []
    clock: Iterator[float] = iter([0.0, *(second for second, _ in looks)])
    show = ProgressLines("score", 4, 1000, said.append, lambda: next(clock))
    for _, progress in looks:
        show(progress)
    return said


def test_a_short_job_says_nothing() -> None:
    assert lines_of([(0.1, Progress(10, 0, 10)), (LINE_SECONDS - 0.1, Progress(900, 3, 900))]) == []


def test_a_line_about_every_ten_seconds() -> None:
    looks = [(0.0, Progress(0, 0, 0))]
    looks += [(second, Progress(2 * second, second // 10, 10 * second)) for second in range(1, 60)]
    said = lines_of(looks)
    assert len(said) == 5
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  score: 20 videos, 2 videos/s, shard 2/4, 0:01:30 left", said[0]
    )
    assert said[-1].endswith("score: 100 videos, 2 videos/s, shard 4/4, 0:00:50 left")


def test_without_a_way_to_tell_the_time_left() -> None:
    assert lines_of([(11.0, Progress(5, 0, 70))])[0].endswith("score: 5 videos, 0 videos/s, shard 1/4, ? left")


def test_the_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress_bar(3, 100) as show:
        show(Progress(1000, 0, 10))
        show(Progress(2000, 3, 100))
    assert "2,000 videos" in capsys.readouterr().err


@pytest.mark.parametrize("most", [0, 1, 2])
def test_the_bar_takes_no_thread_that_the_job_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], most: int
) -> None:
    """Without one it would end the job, and leave a terminal without a cursor."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("scorer.cli.progress.takes_escapes", lambda stream: True)
    allow_threads(monkeypatch, most)
    with shown_progress("merge", 3, 100, quiet=False) as show:
        show(Progress(1000, 3, 100))
    assert ("1,000 videos" in capsys.readouterr().err) == (most == 2)
