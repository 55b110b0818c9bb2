"""Averages of gradient estimates, kept in subspace coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from . import _arrays
from ._arrays import Array
from ._checks import as_python, fraction


@dataclass(frozen=True)
class ExponentialAverage:
    """``M = beta M + (1 - beta) G``, starting from M = G (arXiv 2605.09034).

    Parameters
    ----------
    beta : float
        From 0 (no memory) up to, not including, 1.
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        as_python(self, beta=partial(fraction, "momentum"))

    def init(self, like: Array) -> Array:
        """Return the momentum before the first estimate: zeros, which the first one replaces."""
        return _arrays.namespace(like).zeros_like(like)

    def update(self, momentum: Array, gradient: Array, alive: Array, started: Array) -> Array:
        """Return the new momentum.

        Parameters
        ----------
        momentum, gradient : arrays of one shape
        alive : 0-d array
            0 where the step has no estimate: then the momentum stays as it is, to the bit.
        started : 0-d array
            0 where no estimate came before this one, else 1.
        """
        weight = alive * (1.0 - self.beta * started)
        return momentum + weight * (gradient - momentum)

    def carry_over(self, momentum: Array, transport: Array) -> Array:
        """Return ``A_new^T A_old M``."""
        return transport @ momentum
