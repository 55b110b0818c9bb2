"""Matrix signs: streaming power iteration, Newton-Schulz, polar factor; normalised vectors.

All of them divide by the largest entry first, so that no absolute constant decides anything and
the squares in float32 neither overflow nor vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

from . import _arrays
from ._arrays import Array
from ._checks import as_python, check_count, check_name, not_negative
from .cholesky_qr import orthonormal_columns

#: returns standard normal numbers of a shape, drawn for the leaf and step at hand
Normal = Callable[[tuple[int, ...]], Array]


class Direction(NamedTuple):
    """What an orthogonalizer returns.

    Attributes
    ----------
    direction : array
        O in the shape of the momentum.
    kept : array, tuple of arrays, or None
        What it keeps for the next step.
    momentum : array or None
        What it leaves of the momentum; None leaves all.
    """

    direction: Array
    kept: Any = None
    momentum: Array | None = None


class Orthogonalizer(Protocol):
    """Turns momentum into a direction; may keep an array between steps."""

    draws: ClassVar[bool] = False  # whether `direction` draws numbers
    batches: ClassVar[bool] = False  # whether `direction` takes stacks of both its arguments

    def init(self, momentum: Array, normal: Normal) -> Any:
        """Return what is kept before the first step; by default nothing."""
        return None

    def direction(self, momentum: Array, kept: Any, normal: Normal) -> Direction:
        """Return the direction for a momentum."""
        ...

    def observe(self, kept: Any, momentum: Array, gradient: Array, alive: Array) -> Any:
        """Return what is kept after an estimate that `momentum` does not hold yet.

        By default nothing is made of it.
        """
        return kept

    def refresh(self, kept: Any, normal: Normal, transport: Any = None) -> Any:
        """Return what is kept after a refresh of the subspace; by default all.

        `transport` carries coordinates of the momentum over to the new frame.
        """
        return kept

    def rank(self, kept: Any) -> int | None:
        """Return the number k of directions, None where it is all of them."""
        return None

    def squares(self, momentum: Array, kept: Any) -> float | None:
        """Return the sum of squares of a direction's entries; None if it depends on their scale.

        By default that of an isometry: one for each singular value.
        """
        return _arrays.size(momentum) / int(max(momentum.shape[-2:]))


# Entries above which two readings of a matrix cost less than a temporary array of its size.
_LARGE = 2**14


def _largest(matrix: Array) -> Array:
    """Return the largest magnitude of a matrix, or of each in a stack (..., 1, 1)."""
    xp = _arrays.namespace(matrix)
    if _arrays.size(matrix) <= _LARGE:
        magnitudes = xp.abs(matrix)
        if matrix.ndim == 2:
            return _arrays.largest(magnitudes)
        return xp.max(magnitudes, axis=(-2, -1), keepdims=True)
    low = xp.min(matrix, axis=(-2, -1), keepdims=True)
    return xp.maximum(xp.max(matrix, axis=(-2, -1), keepdims=True), -low)


def _scaled(matrix: Array) -> tuple[Array, Array]:
    """Return `matrix` over its largest entry, and whether that is not zero."""
    largest = _largest(matrix)
    present = largest > 0
    return matrix / _arrays.select(present, largest, 1.0), present


def _sweep(momentum: Array, right: Array) -> tuple[Array, Array]:
    """One sweep of subspace iteration and the normalised images of its vectors."""
    xp = _arrays.namespace(momentum)
    if _arrays.size(momentum) <= _LARGE:
        momentum, present = _scaled(momentum)
        image = momentum @ right
        unit = None
    else:
        # The thin products are scaled and not the momentum, which would be one more pass over it.
        # The power of two leaves M^T M V, and the squares of its entries, in the range of the
        # dtype for any M.
        largest = _largest(momentum)
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


def _require_matrix(name: str, matrix: Any) -> None:
    if not _arrays.is_array(matrix):
        raise TypeError(f"{name} must be an array, got {type(matrix).__name__}")
    if matrix.ndim < 2 or _arrays.size(matrix) == 0:
        raise ValueError(
            f"{name} must have shape (..., r, n) without empty axes, got {tuple(matrix.shape)}"
        )
    if _arrays.dtype_name(matrix) not in {"float32", "float64"}:
        raise TypeError(
            f"{name} has dtype {matrix.dtype}; convert it to float32 or float64, in which "
            "factorizations are computed"
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
    _require_matrix("M", M)
    _require_matrix("V", V)
    n, k = V.shape[-2:]
    if n != M.shape[-1] or k > min(M.shape[-2:]) or V.dtype != M.dtype:
        raise ValueError(
            f"V must have shape (..., n, k) with n = {M.shape[-1]}, k <= {min(M.shape[-2:])} and "
            f"dtype {M.dtype} for M of shape {tuple(M.shape)}, got {tuple(V.shape)}, {V.dtype}"
        )
    return _sweep(M, V)


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
    _require_matrix("M", M)
    check_count("steps", steps, 0)
    eps = not_negative("eps", eps)
    return _iterate(M, steps, eps, "muon")


def _iterate(matrix: Array, steps: int, eps: float, name: str) -> Array:
    xp = _arrays.namespace(matrix)
    margin = _MARGIN[name]
    x, present = _scaled(matrix)
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


def polar(M: Array, /) -> Array:
    """Return the matrix sign ``msign(M) = U V^T`` of ``M = U S V^T``, the orthogonal polar factor.

    Parameters
    ----------
    M : array of shape (..., r, n), float32 or float64

    Returns
    -------
    array of shape (..., r, n)
        Its singular values are 1, and 0 where those of M are at most max(r, n) eps times the
        largest: a partial isometry. M = 0 gives 0.

    Raises
    ------
    TypeError, ValueError
        If M is not a matrix (stack) of float32 or float64.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> print(np.abs(zo.polar(np.diag([5.0, 0.1]))))
    [[1. 0.]
     [0. 1.]]
    """
    _require_matrix("M", M)
    xp = _arrays.namespace(M)
    scaled, _ = _scaled(M)
    u, s, vh = xp.linalg.svd(scaled, full_matrices=False)
    cutoff = max(M.shape[-2:]) * _arrays.epsilon(M)
    present = s > cutoff * s[..., :1]
    u = xp.where(present[..., None, :], u, 0.0)
    return u @ vh


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
        left, right = _sweep(momentum, kept)
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


@dataclass(frozen=True)
class PolarFactor(Orthogonalizer):
    """``O = polar(M)``: the exact matrix sign, by a singular value decomposition."""

    batches = True

    def direction(self, momentum: Array, kept: Any, normal: Normal) -> Direction:
        """Return O."""
        return Direction(polar(momentum))


@dataclass(frozen=True)
class Plain(Orthogonalizer):
    """``O = w M``: the step is linear in the momentum, as in stochastic gradient descent.

    Parameters
    ----------
    weight : float
        w, for probes whose frame does not have unit size.
    """

    weight: float = 1.0

    def direction(self, momentum: Array, kept: Any, normal: Normal) -> Direction:
        """Return w M."""
        return Direction(momentum if self.weight == 1 else self.weight * momentum)

    def squares(self, momentum: Array, kept: Any) -> None:
        """Return None: the direction has the scale of the gradient."""


@dataclass(frozen=True)
class Normalized(Orthogonalizer):
    """``O = sqrt(d) M / norm(M)`` for an array of d entries: root mean square 1, 0 for M = 0."""

    def direction(self, momentum: Array, kept: Any, normal: Normal) -> Direction:
        """Return O."""
        xp = _arrays.namespace(momentum)
        largest = xp.max(xp.abs(momentum))
        scaled = momentum / xp.where(largest > 0, largest, 1.0)
        rms = xp.sqrt(xp.mean(scaled * scaled))
        return Direction(scaled / xp.where(largest > 0, rms, 1.0))

    def squares(self, momentum: Array, kept: Any) -> float:
        """Return d: the root mean square is 1."""
        return _arrays.size(momentum)
