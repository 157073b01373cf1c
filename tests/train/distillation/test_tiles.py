"""Linear algebra in tiles against LAPACK's in double precision, and what it says of its progress."""

from __future__ import annotations

import pytest
import torch

from train.distillation import tiles
from train.distillation.tiles import Work, cholesky_, forward, idle, inverse_diagonal, solve

COUNT = 50


@pytest.fixture(params=[7, 16, 50, 1000])
def _tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", request.param)
    monkeypatch.setattr(tiles, "ROWS", 11)
    monkeypatch.setattr(tiles, "_COLUMNS", request.param)


def matrix() -> torch.Tensor:
    x = torch.randn(COUNT, 9, generator=torch.Generator().manual_seed(0))
    return x @ x.T + torch.eye(COUNT)


@pytest.mark.usefixtures("_tile")
def test_factor_and_solutions() -> None:
    exact, y = matrix().double(), torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(1))
    factor = cholesky_(matrix(), idle())
    torch.testing.assert_close(factor.tril().double(), torch.linalg.cholesky(exact), rtol=1e-4, atol=1e-5)
    found = solve(factor, y, idle()).double()
    torch.testing.assert_close(found, torch.linalg.solve(exact, y.double()), rtol=1e-4, atol=1e-4)
    lower = torch.linalg.solve_triangular(factor.double().tril(), y.double(), upper=False)
    torch.testing.assert_close(forward(factor, y.clone(), idle()).double(), lower, rtol=1e-4, atol=1e-4)
    diagonal = torch.linalg.inv(exact).diagonal()
    torch.testing.assert_close(inverse_diagonal(factor).double(), diagonal, rtol=1e-4, atol=1e-5)


def test_all_that_is_planned_is_done_step_by_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TILE", 8)
    monkeypatch.setattr(tiles, "ROWS", 11)
    shares: list[float] = []
    work = Work(40.0, lambda share, what: shares.append(share))
    factor = cholesky_(matrix(), work, 10.0)
    solve(factor, torch.ones(COUNT, 2), work, 10.0)
    forward(factor, torch.ones(COUNT, 2), work, 10.0)
    inverse_diagonal(factor, work, 10.0)
    assert shares == sorted(shares)
    assert len(shares) > 20
    assert work.done == pytest.approx(40, rel=0.1)


def test_what_is_called_between_steps_can_stop_it() -> None:
    def stop(share: float, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Work(1, stop).begin("a factor")
