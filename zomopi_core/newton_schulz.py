"""The matrix sign by Newton-Schulz, with the polynomial of Muon or those of Polar Express."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from . import _arrays
from ._arrays import Array
from ._checks import as_python, check_count, check_name, not_negative
from .orthogonalize import Direction, Normal, Orthogonalizer, require_matrix, scaled_to_one

# Coefficients (a, b, c) of X <- a X + b (X X^T) X + c (X X^T)^2 X, step by step, the last one
# for all that follow. muon: Jordan et al. 2024, one quintic with a steep slope at zero.
# polar-express: Amsel et al. 2025 (arXiv 2505.16932), the best quintic at each step for singular
# values from 1e-3 to 1, ending at the classical one, which converges to 1.
_POLYNOMIALS = {
    "muon": ((3.4445, -4.7750, 2.0315),),
    "polar-express": (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
        (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
        (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
        (1.875, -1.25, 0.375),
    ),
}
# The paper's margin against singular values that rounding lifts above 1, on the argument of all
# polynomials of Polar Express but the last.
_MARGIN = {"muon": 1.0, "polar-express": 1.01}


def newton_schulz(M: Array, /, steps: int = 5, eps: float = 0.0) -> Array:
    """Approximate the matrix sign of M by the quintic Newton-Schulz iteration of Muon.

    ``X = M / (norm(M) + eps)``, then ``X <- a X + b (X X^T) X + c (X X^T)^2 X`` with
    (a, b, c) = (3.4445, -4.7750, 2.0315). Singular values end between about 0.7 and 1.2, not at 1.

    Parameters
    ----------
    M : array of shape (..., r, n), float32 or float64
    steps : int
        Number of iterations.
    eps : float
        Added to the Frobenius norm; with 0, the default, the result does not depend on the scale
        of M. M = 0 gives 0 for any `eps`.

    Returns
    -------
    array of shape (..., r, n)

    Raises
    ------
    TypeError, ValueError
        If M is not a matrix (stack) of float32 or float64, or `steps` or `eps` out of range.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> O = zo.newton_schulz(np.diag([1.0, 0.5]))
    >>> bool(np.all(np.abs(np.diag(O) - 1) < 0.35))
    True
    """
    require_matrix("M", M)
    check_count("steps", steps, 0)
    eps = not_negative("eps", eps)
    return _iterate(M, steps, eps, "muon")


def _iterate(matrix: Array, steps: int, eps: float, name: str) -> Array:
    xp = _arrays.namespace(matrix)
    margin = _MARGIN[name]
    x, present = scaled_to_one(matrix)
    norm = xp.sqrt(xp.sum(x * x, axis=(-2, -1), keepdims=True)) * margin
    if eps:
        largest = xp.max(xp.abs(matrix), axis=(-2, -1), keepdims=True)
        norm = norm + eps / xp.where(present, largest, 1.0)
    x = x / xp.where(present, norm, 1.0)
    tall = matrix.shape[-2] > matrix.shape[-1]
    if tall:  # the Gram matrix is formed on the shorter side
        x = _arrays.transposed(x)
    polynomials = _POLYNOMIALS[name]
    for i in range(steps):
        a, b, c = polynomials[min(i, len(polynomials) - 1)]
        if i + 1 < len(polynomials):
            a, b, c = a / margin, b / margin**3, c / margin**5
        gram = x @ _arrays.transposed(x)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return _arrays.transposed(x) if tall else x


@dataclass(frozen=True)
class NewtonSchulz(Orthogonalizer):
    """``O = newton_schulz(M)``, or with the polynomials of Polar Express.

    Parameters
    ----------
    steps : int
    eps : float
        Added to the Frobenius norm.
    polynomials : {"muon", "polar-express"}
    """

    batches = True

    steps: int = 5
    eps: float = 0.0
    polynomials: str = "muon"

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_name("polynomials", self.polynomials, tuple(_POLYNOMIALS))
        as_python(self, steps=int, eps=partial(not_negative, "eps"))

    def direction(self, momentum: Array, kept: Any, normal: Normal) -> Direction:
        """Return O."""
        return Direction(_iterate(momentum, self.steps, self.eps, self.polynomials))
