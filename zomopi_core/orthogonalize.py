"""What an orthogonalizer is, and the plain ones: polar factor, nothing, normalised vectors.

All of them divide by the largest entry first, so that no absolute constant decides anything and
the squares in float32 neither overflow nor vanish.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from . import _arrays
from ._arrays import Array

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
    keeps_scale: ClassVar[bool] = False  # whether a direction has the scale of the momentum

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


_LARGE = 2**14


def is_large(matrix: Array) -> bool:
    """Tell whether two readings of a matrix cost less than a temporary array of its size."""
    return _arrays.size(matrix) > _LARGE


def largest_magnitude(matrix: Array) -> Array:
    """Return the largest magnitude of a matrix, or of each in a stack (..., 1, 1)."""
    xp = _arrays.namespace(matrix)
    if not is_large(matrix):
        magnitudes = xp.abs(matrix)
        if matrix.ndim == 2:
            return _arrays.largest(magnitudes)
        return xp.max(magnitudes, axis=(-2, -1), keepdims=True)
    low = xp.min(matrix, axis=(-2, -1), keepdims=True)
    return xp.maximum(xp.max(matrix, axis=(-2, -1), keepdims=True), -low)


def scaled_to_one(matrix: Array) -> tuple[Array, Array]:
    """Return `matrix` over its largest entry, and whether that is not zero."""
    largest = largest_magnitude(matrix)
    present = largest > 0
    return matrix / _arrays.select(present, largest, 1.0), present


def require_matrix(name: str, matrix: Any) -> None:
    """Raise unless an argument is a matrix, or a stack, of float32 or float64."""
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
    require_matrix("M", M)
    xp = _arrays.namespace(M)
    scaled, _ = scaled_to_one(M)
    u, s, vh = xp.linalg.svd(scaled, full_matrices=False)
    cutoff = max(M.shape[-2:]) * _arrays.epsilon(M)
    present = s > cutoff * s[..., :1]
    u = xp.where(present[..., None, :], u, 0.0)
    return u @ vh


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

    keeps_scale = True

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
