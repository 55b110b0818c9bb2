"""Distributed orthonormalized updates with error feedback (Dion, arXiv 2504.05295)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from . import _arrays
from ._arrays import Array
from ._checks import as_python, check_count, fraction
from .orthogonalize import Direction, Normal, Orthogonalizer


@dataclass(frozen=True)
class DionIteration(Orthogonalizer):
    """``P = qr(B Q)``, ``R = B^T P``, ``Q = columns of R, normalised``, ``O = P Q^T``.

    What the step used is taken from the momentum: ``M = B - (1 - beta) P R^T``. B is M + G, so
    that the momentum part is an accumulation with beta = 1.

    Parameters
    ----------
    rank_ : int
        Columns r of P and Q; clipped to min(m, n).
    beta : float
        What is left of the directions used.
    """

    rank_: int = 64
    beta: float = 0.95

    def __post_init__(self) -> None:
        check_count("rank", self.rank_)
        as_python(self, rank_=int, beta=partial(fraction, "momentum"))

    def init(self, momentum: Array, normal: Normal) -> Array:
        """Return Q, the Q-factor of a Gaussian n x r matrix."""
        *batch, m, n = momentum.shape
        gauss = normal((*batch, n, min(self.rank_, m, n)))
        return _arrays.namespace(momentum).linalg.qr(gauss)[0]

    def direction(self, momentum: Array, kept: Array | None, normal: Normal) -> Direction:
        """Return O, Q and the remaining momentum."""
        xp = _arrays.namespace(momentum)
        largest = xp.max(xp.abs(momentum), axis=(-2, -1), keepdims=True)
        present = largest > 0
        scaled = momentum / xp.where(present, largest, 1.0)
        p, _ = xp.linalg.qr(scaled @ kept)
        r = _arrays.transposed(scaled) @ p
        norms = xp.sqrt(xp.sum(r * r, axis=-2, keepdims=True))
        cutoff = max(momentum.shape[-2:]) * _arrays.epsilon(momentum)
        visible = norms > cutoff * xp.max(norms, axis=-1, keepdims=True)
        columns = xp.where(visible, r / xp.where(visible, norms, 1.0), 0.0)
        used = p @ _arrays.transposed(r)
        return Direction(
            p @ _arrays.transposed(columns),
            # a column that vanished would stay so: it keeps its old direction
            xp.where(visible, columns, kept),
            momentum - (1.0 - self.beta) * largest * used,
        )

    def squares(self, momentum: Array, kept: Array | None) -> float:
        """Return r, times the matrices of the batch."""
        return _arrays.size(kept) / int(momentum.shape[-1])
