"""Low-rank orthogonalization by sketching (He, Deng, Lu 2025, arXiv 2509.11983).

``Q = qr(M Omega)``, ``O = Q msign(Q^T M)``: the matrix sign of M seen through r columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from . import _arrays
from ._arrays import Array
from ._checks import as_python, check_count, check_name
from .orthogonalize import Direction, Normal, Orthogonalizer, polar


def low_rank_orthogonalization(matrix: Array, sketched: Array) -> Array:
    """Return ``Q msign(Q^T M)`` for ``Q = qr(sketched)``, `sketched` being M times few columns."""
    xp = _arrays.namespace(matrix)
    largest = xp.max(xp.abs(sketched), axis=(-2, -1), keepdims=True)
    q, _ = xp.linalg.qr(sketched / xp.where(largest > 0, largest, 1.0))
    return q @ polar(_arrays.transposed(q) @ matrix)


@dataclass(frozen=True)
class LowRankOrthogonalization(Orthogonalizer):
    """``O = Q msign(Q^T M)``.

    Parameters
    ----------
    rank : int
        Columns r of the sketch; clipped to min(m, n).
    sketch : {"gaussian", "columns"}
        ``"gaussian"`` sketches with a Gaussian matrix, ``"columns"`` with columns of M chosen at
        random, without replacement.
    power_iterations : int
        Times that ``M M^T`` is applied to the sketch, with a QR factorization after each.
    """

    draws: ClassVar[bool] = True
    rank_: int = 64
    sketch: str = "gaussian"
    power_iterations: int = 0

    def __post_init__(self) -> None:
        check_count("rank", self.rank_)
        check_name("sketch", self.sketch, ("gaussian", "columns"))
        check_count("power_iterations", self.power_iterations, 0)
        as_python(self, rank_=int, power_iterations=int)

    def direction(self, momentum: Array, kept: Array | None, normal: Normal) -> Direction:
        """Return O."""
        xp = _arrays.namespace(momentum)
        *batch, m, n = momentum.shape
        r = min(self.rank_, m, n)
        if self.sketch == "gaussian":
            sketched = momentum @ normal((*batch, n, r))
        else:
            # the order of normal numbers is a uniformly random permutation
            chosen = xp.argsort(normal((n,)))[:r]
            sketched = xp.take(momentum, chosen, axis=-1)
        for _ in range(self.power_iterations):
            q, _ = xp.linalg.qr(sketched)
            sketched = momentum @ (_arrays.transposed(momentum) @ q)
        return Direction(low_rank_orthogonalization(momentum, sketched))

    def squares(self, momentum: Array, kept: Array | None) -> float:
        """Return r, times the matrices of the batch."""
        *_, m, n = momentum.shape
        return float(_arrays.size(momentum) / (m * n) * min(self.rank_, m, n))
