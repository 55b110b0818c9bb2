"""A control where the truth is known: an ill-conditioned quadratic of one matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _arrays
from .._arrays import Array, Namespace
from ._problem import Problem, constants


@dataclass(frozen=True, eq=False, kw_only=True)
class Quadratic(Problem):
    """Distance to a matrix in a norm that weighs directions differently.

    ``F(X) = ||L (X - T) R||_F^2 / ||L T R||_F^2``; the gradient ``2 L^T L (X - T) R R^T / ...``
    has the rank of X - T.

    Attributes
    ----------
    x0 : array of shape (m, n)
        Zeros, float64, without unit; F is 1 there.
    solution : array of shape (m, n)
        T, where F is 0.
    left, right : arrays of shape (m, m) and (n, n)
        L and R.
    scale : float
        The denominator.
    """

    solution: Array
    left: Array
    right: Array
    scale: float

    def _value(self, x: Array) -> Array:
        xp = _arrays.namespace(x)
        weighed = self.left @ (x - self.solution) @ self.right
        return xp.sum(weighed * weighed, axis=(-2, -1)) / self.scale


def quadratic(
    xp: Namespace = np,
    *,
    device: Any = None,
    shape: tuple[int, int] = (64, 64),
    rank: int | None = 2,
    condition: float = 1e3,
    seed: int = 0,
) -> Quadratic:
    """Make the quadratic: 4,096 unknowns in float64 by default.

    Parameters
    ----------
    xp, device
        As in `digits`.
    shape : tuple of int
        Rows and columns.
    rank : int, optional
        Of the solution, a product of Gaussian factors; None makes it a Gaussian matrix of full
        rank.
    condition : float
        Largest over smallest eigenvalue of the Hessian, whose eigenvalues are the products of two
        geometric sequences and whose eigenvectors are random.
    seed : int
        Of the solution and of the eigenvectors.

    Returns
    -------
    Quadratic

    Notes
    -----
    From zero the gradient has the rank of the solution. Of its squared norm four singular values
    hold 1.00 at `x0` and 0.97 at the target of gradient descent for rank 2, and 0.57 and 0.66 for
    full rank, less between (seed 0). A run of `zo_mopi` fills
    X - T with directions of its own: at its target they hold 0.35 for rank 2 (seed 2).

    Examples
    --------
    >>> from zomopi_core import problems
    >>> problem = problems.quadratic()
    >>> float(problem.exact(problem.x0)), float(problem.exact(problem.solution))
    (1.0, 0.0)
    """
    m, n = shape
    random = np.random.default_rng(seed)
    if rank is None:
        solution = random.standard_normal(shape)
    else:
        solution = random.standard_normal((m, rank)) @ random.standard_normal((rank, n))
    solution /= np.sqrt(n) * np.sqrt(
        np.mean(solution**2)
    )  # rows of norm 1, as default rates expect
    left, right = (_weights(size, condition, random) for size in shape)
    scale = float(np.sum((left @ solution @ right) ** 2))
    kind = "full rank" if rank is None else f"rank {rank}"
    T, L, R = constants(xp, device, solution, left, right)
    return Quadratic(
        name="quadratic-full" if rank is None else "quadratic",
        summary=f"ill-conditioned quadratic, {kind}",
        x0=xp.zeros(shape, dtype=T.dtype, device=device),
        loss_name="squared distance, 1 at the start",
        # Where the well-conditioned part is solved. zo_mopi took 7,834, 5,826 and 7,362 queries
        # for rank 2, and 6,562, 6,226 and 6,162 for full rank (seeds 0, 1, 2).
        target=0.4,
        low_rank=rank is not None and rank <= 4,
        solution=T,
        left=L,
        right=R,
        scale=scale,
    )


def _weights(size: int, condition: float, random: np.random.Generator) -> Any:
    """Return a matrix whose Gram matrix has eigenvalues from 1 down to condition**-0.5."""
    vectors = np.linalg.qr(random.standard_normal((size, size)))[0]
    # the Hessian multiplies both sides: each has the root of its condition
    return np.geomspace(1.0, condition**-0.25, size)[:, None] * vectors.T
