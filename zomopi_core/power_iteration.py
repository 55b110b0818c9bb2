"""Streaming power iteration: the leading singular vectors, one warm-started sweep a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from . import _arrays
from ._arrays import Array
from ._checks import as_python, check_count
from .cholesky_qr import orthonormal_columns
from .orthogonalize import (
    Direction,
    Normal,
    Orthogonalizer,
    is_large,
    largest_magnitude,
    require_matrix,
    scaled_to_one,
)


def streaming_power_iteration(M: Array, V: Array, /) -> tuple[Array, Array]:
    """Improve right singular vectors by one sweep and return the matching left ones.

    ``V <- Q-factor of M^T (M V)``, ``U <- columns of M V, each normalised``. Then ``U V^T`` is the
    approximate matrix sign of M of rank k (arXiv 2605.09034, streaming power iteration).

    Parameters
    ----------
    M : array of shape (..., r, n), float32 or float64
        The momentum; leading axes are a batch.
    V : array of shape (..., n, k)
        Right vectors of the step before, of M's dtype, k <= min(r, n).

    Returns
    -------
    U : array of shape (..., r, k)
        A column is zero where that of M V is at most max(r, n) eps times the longest one; all are
        zero for M = 0.
    V : array of shape (..., n, k)
        Orthonormal columns; unchanged for M = 0.

    Raises
    ------
    TypeError, ValueError
        If M or V is not a matrix (stack) of float32 or float64 or their shapes do not match.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> M = np.diag([3.0, 2.0, 1.0])
    >>> V = np.eye(3)[:, :2]
    >>> U, V = zo.streaming_power_iteration(M, V)
    >>> print(np.round(np.abs(U @ V.T), 12))
    [[1. 0. 0.]
     [0. 1. 0.]
     [0. 0. 0.]]
    """
    require_matrix("M", M)
    require_matrix("V", V)
    n, k = V.shape[-2:]
    if n != M.shape[-1] or k > min(M.shape[-2:]) or V.dtype != M.dtype:
        raise ValueError(
            f"V must have shape (..., n, k) with n = {M.shape[-1]}, k <= {min(M.shape[-2:])} and "
            f"dtype {M.dtype} for M of shape {tuple(M.shape)}, got {tuple(V.shape)}, {V.dtype}"
        )
    return sweep(M, V)


def sweep(momentum: Array, right: Array) -> tuple[Array, Array]:
    """One sweep of subspace iteration and the normalised images of its vectors."""
    xp = _arrays.namespace(momentum)
    if not is_large(momentum):
        momentum, present = scaled_to_one(momentum)
        image = momentum @ right
        unit = None
    else:
        # The thin products are scaled and not the momentum, which would be one more pass over it.
        # The power of two leaves M^T M V, and the squares of its entries, in the range of the
        # dtype for any M.
        largest = largest_magnitude(momentum)
        present = largest > 0
        unit = _arrays.select(present, largest, 1.0)
        image = (momentum @ right) / unit * 2.0 ** xp.floor(-0.75 * xp.log2(unit))
    new = orthonormal_columns(_arrays.transposed(momentum) @ image, right)
    right = _arrays.select(present, new, right)
    image = momentum @ right
    if unit is not None:
        image = image / unit
    lengths = xp.sqrt(xp.vecdot(image, image, axis=-2))[..., None, :]
    longest = (
        _arrays.largest(lengths) if image.ndim == 2 else xp.max(lengths, axis=-1, keepdims=True)
    )
    cutoff = max(momentum.shape[-2:]) * _arrays.epsilon(momentum)
    visible = lengths > cutoff * longest
    return image / xp.where(visible, lengths, math.inf), right


@dataclass(frozen=True)
class PowerIteration(Orthogonalizer):
    """``O = U V^T`` from one warm-started sweep; keeps the right vectors V.

    Parameters
    ----------
    spectral_rank : int, optional
        Directions k that are kept; by default half the rank r, at least one. Clipped to
        min(r, n).
    keep_right : bool
        Whether V outlives a refresh, as it should: the right space does not depend on the frame.
    """

    batches = True

    spectral_rank: int | None = None
    keep_right: bool = True

    def __post_init__(self) -> None:
        if self.spectral_rank is not None:
            check_count("spectral_rank", self.spectral_rank)
            as_python(self, spectral_rank=int)

    def init(self, momentum: Array, normal: Normal) -> Array:
        """Return the Q-factor of a Gaussian n x k matrix."""
        *batch, r, n = momentum.shape
        k = min(self.spectral_rank or max(1, r // 2), r, n)
        return _arrays.namespace(momentum).linalg.qr(normal((*batch, n, k)))[0]

    def direction(self, momentum: Array, kept: Any, normal: Normal) -> Direction:
        """Return U V^T, keeping V."""
        left, right = sweep(momentum, kept)
        return Direction(left @ _arrays.transposed(right), right)

    def refresh(self, kept: Any, normal: Normal, transport: Any = None) -> Any:
        """Return V, or another Q-factor of a Gaussian matrix."""
        if self.keep_right or kept is None:
            return kept
        return _arrays.namespace(kept).linalg.qr(normal(tuple(kept.shape)))[0]

    def rank(self, kept: Any) -> int | None:
        """Return k."""
        return None if kept is None else int(kept.shape[-1])

    def squares(self, momentum: Array, kept: Any) -> float:
        """Return k, times the matrices of the batch: each of k singular values is 1."""
        return _arrays.size(kept) / int(momentum.shape[-1])
