"""Averages of gradient estimates, kept in subspace coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

from . import _arrays
from ._arrays import Array
from ._checks import as_python, fraction

#: carries momentum to a new frame: L for ``L M``, or (L, R) for ``L M R``, L None for ``M R``
Transport = Any


def carried_over(momentum: Array, transport: Transport) -> Array:
    """Return momentum in the coordinates of a new frame, for instance ``A_new^T A_old M``."""
    if isinstance(transport, tuple):
        left, right = transport
        momentum = momentum @ right
        return momentum if left is None else left @ momentum
    return transport @ momentum


class Momentum(Protocol):
    """Turns a sequence of estimates into what is orthogonalized.

    The momentum M is an array in subspace coordinates; what else is kept is the part's own.
    """

    @property
    def memory(self) -> float:
        """Number of steps over which M averages, 1 where it is the estimate itself."""
        return 1.0

    def init(self, zeros: Array) -> Any:
        """Return what is kept beside M, which starts as `zeros`, before the first estimate."""
        ...

    def update(
        self, momentum: Array, kept: Any, gradient: Array, alive: Array, started: Array
    ) -> tuple[Array, Any, Array]:
        """Return (M, what is kept, what goes to the orthogonalizer).

        Parameters
        ----------
        momentum, gradient : arrays of one shape
        kept
            What `init` or the last update returned.
        alive : 0-d array
            0 where the step has no estimate: then all stays as it is, to the bit.
        started : 0-d array
            0 where no estimate came before this one, else 1.
        """
        ...

    def carry_over(self, momentum: Array, transport: Transport) -> Array:
        """Return M in the coordinates of a new frame."""
        return carried_over(momentum, transport)


@dataclass(frozen=True)
class ExponentialAverage(Momentum):
    """``M = beta M + (1 - beta) G``, starting from M = G (arXiv 2605.09034).

    Parameters
    ----------
    beta : float
        From 0 (no memory) up to, not including, 1.
    from_zero : bool
        Whether to start from M = 0 instead, so that the first average is (1 - beta) G.
    unbiased : bool
        Whether to divide the average that starts from zero by the sum of its weights,
        ``1 - beta^t``, so that the first estimates weigh no more than those that follow.
    fitted : bool
        Whether `tuning.fit_memory` may choose beta by the number of unknowns.
    """

    beta: float = 0.9
    from_zero: bool = False
    unbiased: bool = False
    fitted: bool = False

    def __post_init__(self) -> None:
        as_python(self, beta=partial(fraction, "momentum"))

    @property
    def memory(self) -> float:
        """1 / (1 - beta)."""
        return 1.0 / (1.0 - self.beta)

    def init(self, zeros: Array) -> Array | None:
        """Return beta^0 where it is needed: else M is all there is."""
        if not self.unbiased:
            return None
        return _arrays.namespace(zeros).ones((), dtype=zeros.dtype, device=_arrays.device(zeros))

    def update(
        self, momentum: Array, kept: Any, gradient: Array, alive: Array, started: Array
    ) -> tuple[Array, Any, Array]:
        """Return (M, beta^t or None, M)."""
        if self.unbiased:
            xp = _arrays.namespace(gradient)
            kept = kept * (1.0 - alive * (1.0 - self.beta))
            weights = xp.where(kept < 1, 1.0 - kept, 1.0)
            weight = alive * (1.0 - self.beta) / weights
            momentum = _arrays.between(momentum, gradient, weight)
            return momentum, kept, momentum
        beta = self.beta if self.from_zero else self.beta * started
        momentum = _arrays.between(momentum, gradient, alive * (1.0 - beta))
        return momentum, None, momentum


@dataclass(frozen=True)
class Accumulation(Momentum):
    """``M = beta M + G``; with `nesterov` the direction is taken of ``G + beta M`` (Jordan 2024).

    Parameters
    ----------
    beta : float
        From 0 up to 1; 1 only where the orthogonalizer takes from M what it used.
    nesterov : bool
    """

    beta: float = 0.95
    nesterov: bool = False

    def __post_init__(self) -> None:
        if self.beta != 1:
            as_python(self, beta=partial(fraction, "momentum"))

    @property
    def memory(self) -> float:
        """1 / (1 - beta), 1 for beta = 1."""
        return 1.0 / (1.0 - self.beta) if self.beta < 1 else 1.0

    def init(self, zeros: Array) -> None:
        """Return None: M is all there is."""

    def update(
        self, momentum: Array, kept: Any, gradient: Array, alive: Array, started: Array
    ) -> tuple[Array, Any, Array]:
        """Return (M, None, M or G + beta M)."""
        momentum = momentum + alive * (gradient - (1.0 - self.beta) * momentum)
        return momentum, None, gradient + self.beta * momentum if self.nesterov else momentum


class Moments(NamedTuple):
    """What `Adam` keeps: the root of the mean square, and powers of both rates for the bias."""

    root: Array
    first_power: Array
    second_power: Array


@dataclass(frozen=True)
class Adam(Momentum):
    """``M / sqrt(S)`` of bias-corrected averages of G and of its squares (Kingma and Ba 2015).

    Without an absolute epsilon, so that the scale of F does not matter: an entry whose estimates
    were all zero does not move.

    Parameters
    ----------
    beta1, beta2 : float
        Memories of the averages of G and of its squares.
    """

    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        as_python(self, beta1=partial(fraction, "momentum"), beta2=partial(fraction, "beta2"))

    @property
    def memory(self) -> float:
        """1 / (1 - beta1)."""
        return 1.0 / (1.0 - self.beta1)

    def init(self, zeros: Array) -> Moments:
        """Return a root of zeros, and both powers at 1."""
        xp = _arrays.namespace(zeros)
        one = xp.ones((), dtype=zeros.dtype, device=_arrays.device(zeros))
        # Squares of tiny estimates vanish in float32: what is kept is the root of their mean.
        return Moments(zeros, one, one)

    def update(
        self, momentum: Array, kept: Any, gradient: Array, alive: Array, started: Array
    ) -> tuple[Array, Any, Array]:
        """Return (M, moments, the quotient)."""
        xp = _arrays.namespace(gradient)
        momentum = momentum + (alive * (1.0 - self.beta1)) * (gradient - momentum)
        root = kept.root
        largest = xp.max(xp.maximum(xp.abs(gradient), root))
        unit = xp.where(largest > 0, largest, 1.0)
        old, new = root / unit, gradient / unit
        mean = xp.sqrt(self.beta2 * old * old + (1.0 - self.beta2) * new * new) * unit
        root = xp.where(alive > 0, mean, root)
        first = kept.first_power * (1.0 - alive * (1.0 - self.beta1))
        second = kept.second_power * (1.0 - alive * (1.0 - self.beta2))
        correction = xp.sqrt(1.0 - second) / xp.where(first < 1, 1.0 - first, 1.0)
        quotient = xp.where(root > 0, momentum / xp.where(root > 0, root, 1.0), 0.0)
        return momentum, Moments(root, first, second), quotient * correction

    def carry_over(self, momentum: Array, transport: Transport) -> Array:
        """Raise: squares of entries have no meaning in another frame."""
        raise TypeError("Adam keeps squares of entries and needs a subspace that never changes")
