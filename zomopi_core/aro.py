"""Adaptively rotated optimization (ARO, arXiv 2602.09006)."""

from __future__ import annotations

from dataclasses import dataclass

from . import _arrays
from ._arrays import Array
from ._checks import as_python, check_count, check_name
from .orthogonalize import Direction, Normal, Orthogonalizer


def sinkhorn(matrix: Array, sweeps: int) -> Array:
    """Return `matrix` with rows, then columns, scaled to root mean square 1, `sweeps` times."""
    xp = _arrays.namespace(matrix)
    for _ in range(sweeps):
        for axis in (-1, -2):
            rms = xp.sqrt(xp.mean(matrix * matrix, axis=axis, keepdims=True))
            matrix = matrix / xp.where(rms > 0, rms, 1.0)
    return matrix


@dataclass(frozen=True)
class Rotated(Orthogonalizer):
    """``R_t = qr(M f(R_{t-1}^T M)^T)``, ``O = R_t f(R_t^T M)``, from R_0 = I.

    Parameters
    ----------
    normalisation : {"sign", "sinkhorn"}
        f: the sign of each entry, or rows and columns scaled to root mean square 1.
    sweeps : int
        Of the Sinkhorn normalisation.
    """

    normalisation: str = "sign"
    sweeps: int = 5

    def __post_init__(self) -> None:
        check_name("normalisation", self.normalisation, ("sign", "sinkhorn"))
        check_count("sweeps", self.sweeps)
        as_python(self, sweeps=int)

    def _base(self, matrix: Array) -> Array:
        if self.normalisation == "sinkhorn":
            return sinkhorn(matrix, self.sweeps)
        # Rows of R^T M are orthogonal to sign vectors, and where two of these differ in one entry
        # that entry of the row is zero but for rounding, whose sign means nothing.
        xp = _arrays.namespace(matrix)
        size = xp.abs(matrix)
        cutoff = _arrays.epsilon(matrix) ** 0.75
        # rounding is amplified by the condition of what R was computed from
        seen = size > cutoff * xp.max(size, axis=(-2, -1), keepdims=True)
        return xp.where(seen, xp.sign(matrix), 0.0)

    def init(self, momentum: Array, normal: Normal) -> Array:
        """Return the identity (m x m), for each matrix of a batch."""
        xp = _arrays.namespace(momentum)
        *batch, m, _ = momentum.shape
        eye = xp.eye(m, dtype=momentum.dtype, device=_arrays.device(momentum))
        return xp.broadcast_to(eye, (*batch, m, m))

    def direction(self, momentum: Array, kept: Array | None, normal: Normal) -> Direction:
        """Return O and R_t."""
        xp = _arrays.namespace(momentum)
        largest = xp.max(xp.abs(momentum), axis=(-2, -1), keepdims=True)
        present = largest > 0
        scaled = momentum / xp.where(present, largest, 1.0)
        base = self._base(_arrays.transposed(kept) @ scaled)
        rotation, _ = xp.linalg.qr(scaled @ _arrays.transposed(base))
        rotation = xp.where(present, rotation, kept)
        return Direction(rotation @ self._base(_arrays.transposed(rotation) @ scaled), rotation)

    def squares(self, momentum: Array, kept: Array | None) -> float:
        """Return the number of entries: each is of size 1 before the rotation."""
        return _arrays.size(momentum)
