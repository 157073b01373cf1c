"""The simulation of a cluster agrees with what can be worked out without it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.simulation import Simulation, Way

FREE = Way("free", 1000, 0.0, in_order=True, resumes=False)


def test_without_a_driver_the_workers_are_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.simulation.STRAGGLERS", 0.0)
    monkeypatch.setattr("benchmarks.simulation.NODE_HOURS", 1e9)
    seen = Simulation(FREE, 10, 500.0, 1_000_000).run()
    assert seen.seconds == pytest.approx(1_000_000 / 10 / 500, rel=0.03)
    assert seen.lost == 0


@pytest.mark.parametrize("in_order", [True, False])
def test_a_slow_driver_is_the_limit(in_order: bool) -> None:
    seen = Simulation(replace(FREE, take=1.0, in_order=in_order), 100, 1000.0, 500_000).run()
    assert seen.busy == pytest.approx(500)
    assert seen.seconds == pytest.approx(500, rel=0.02)


@pytest.mark.parametrize("resumes", [True, False])
def test_lost_nodes_cost_time_and_no_part(monkeypatch: pytest.MonkeyPatch, resumes: bool) -> None:
    calm = Simulation(FREE, 16, 100.0, 4_000_000).run()
    monkeypatch.setattr("benchmarks.simulation.NODE_HOURS", 0.05)
    seen = Simulation(replace(FREE, resumes=resumes), 16, 100.0, 4_000_000).run()
    assert seen.lost > 5
    assert seen.seconds > calm.seconds
