"""Linear algebra in steps of a second at most: each tells how far it is, and a request to stop is met between two.

LAPACK's own routines answer no signal for minutes. What fits into one tile is theirs. All of it is computed where the
matrix is.

Shape suffixes: N rows of a matrix, R those that are left, B columns of a block, L columns of right-hand sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 512
ROWS = 2048
_COLUMNS = 1024  # of a factor's inverse, at a time


@dataclass
class Work:
    """Counts what is done of `total`, in seconds or any other unit.

    It calls `at` with the share, and with where it is and what comes next.

    `at` stops the work by raising.
    """

    total: float
    at: Callable[[float, str], None]
    where: str = ""
    what: str = ""
    done: float = 0.0

    def begin(self, what: str) -> None:
        """Say what comes next."""
        self.what = what
        self.add(0)

    def add(self, amount: float) -> None:
        """So much more is done."""
        self.done += amount
        self.at(min(1.0, self.done / self.total) if self.total else 0.0, self.where + self.what)


def idle() -> Work:
    """Work that nobody watches."""
    return Work(0, lambda share, what: None)


def cholesky_(matrix_NN: Tensor, work: Work, seconds: float = 0.0) -> Tensor:
    """The Cholesky factor, in the lower triangle of its argument's place; `seconds` are what it takes by the plan.

    Column block by column block, each from those before it.
    """
    count = len(matrix_NN)
    if count <= TILE:
        return torch.linalg.cholesky(matrix_NN)
    for first, end in _tiles(count):
        block_BR = matrix_NN[first:end, :first]
        for row in range(first, count, ROWS):
            rows = matrix_NN[row : row + ROWS]
            rows[:, first:end] -= rows[:, :first] @ block_BR.T
            work.add(seconds * _share_of_cube(first, end, count) * len(rows) / (count - first))
        corner_BB = torch.linalg.cholesky(matrix_NN[first:end, first:end])
        matrix_NN[first:end, first:end] = corner_BB
        below_RB = matrix_NN[end:, first:end]
        if len(below_RB):
            below_RB.copy_(torch.linalg.solve_triangular(corner_BB.T, below_RB, upper=True, left=False))
    return matrix_NN


def solve(factor_NN: Tensor, y_NL: Tensor, work: Work, seconds: float = 0.0) -> Tensor:
    """What the matrix with the lower Cholesky factor `factor_NN` maps to y_NL: (N, L)."""
    count = len(factor_NN)
    if count <= TILE:
        return torch.cholesky_solve(y_NL, factor_NN)
    x_NL = forward(factor_NN, y_NL.clone(), work, seconds / 2)
    for first, end in reversed(list(_tiles(count))):
        x_NL[first:end] -= factor_NN[end:, first:end].T @ x_NL[end:]
        corner_BB = factor_NN[first:end, first:end].tril().T
        x_NL[first:end] = torch.linalg.solve_triangular(corner_BB, x_NL[first:end], upper=True)
        work.add(seconds / 2 * _share_of_square(count - end, count - first, count))
    return x_NL


def forward(factor_NN: Tensor, x_NL: Tensor, work: Work, seconds: float = 0.0) -> Tensor:
    """What the lower triangle alone maps to x_NL, whose place it may take: (N, L)."""
    count = len(factor_NN)
    if count <= TILE:
        return torch.linalg.solve_triangular(factor_NN, x_NL, upper=False)
    for first, end in _tiles(count):
        x_NL[first:end] -= factor_NN[first:end, :first] @ x_NL[:first]
        corner_BB = factor_NN[first:end, first:end]
        x_NL[first:end] = torch.linalg.solve_triangular(corner_BB, x_NL[first:end], upper=False)
        work.add(seconds * _share_of_square(first, end, count))
    return x_NL


def inverse_diagonal(factor_NN: Tensor, work: Work | None = None, seconds: float = 0.0) -> Tensor:
    """The diagonal (N,) of the inverse of L L^T, for the lower triangle L = `factor_NN`.

    It is the squared lengths of the columns of L's inverse, found some at a time: above a column's own row they are
    zero. LAPACK's inverse takes eight times as long, and another matrix.
    """
    work, count, lengths = work or idle(), len(factor_NN), []
    for first in range(0, count, _COLUMNS):
        rest_RR = factor_NN[first:, first:]
        left = len(rest_RR)
        unit_RB = torch.eye(left, min(_COLUMNS, left), device=factor_NN.device)
        share = (left**3 - (left - unit_RB.shape[1]) ** 3) / count**3
        column_RB = forward(rest_RR, unit_RB, work, seconds * share)
        lengths.append(column_RB.square().sum(dim=0))
    return torch.cat(lengths)


def _tiles(count: int) -> Iterator[tuple[int, int]]:
    for first in range(0, count, TILE):
        yield first, min(first + TILE, count)


def _share_of_square(first: int, end: int, count: int) -> float:
    """How much of count^2 is between first^2 and end^2."""
    return (end**2 - first**2) / count**2


def _share_of_cube(first: int, end: int, count: int) -> float:
    """How much of a factorisation is the column block from `first` to `end`: (count - c) c, integrated."""

    def before(column: int) -> float:
        part = column / count
        return 3 * part**2 - 2 * part**3

    return before(end) - before(first)
