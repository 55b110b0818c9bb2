"""Losses to coefficients to a gradient estimate in subspace coordinates.

=============  ========================================  ===========
difference     coefficient c_i                           evaluations
=============  ========================================  ===========
central        (F(X + mu P_i) - F(X - mu P_i)) / (2 mu)  2 N
forward        (F(X + mu P_i) - F(X)) / mu               N + 1
leave-one-out  (F(X + mu P_i) - mean F) / mu             N
=============  ========================================  ===========

with P_i = A B_i, and G = (1/N) sum_i c_i B_i, for leave-one-out G = 1/(N-1) sum_i c_i B_i. Each
is unbiased for A^T grad F as mu -> 0 (arXiv 2605.09034; leave-one-out: the mean of the other
losses is the baseline of each).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from . import _arrays
from ._arrays import Array
from ._checks import as_python, check_count, check_name, positive

DIFFERENCES = ("central", "forward", "leave-one-out")


class Evaluation(NamedTuple):
    """One point of a step: X + scale * P_probe, or X itself where `probe` is None."""

    probe: int | None
    scale: float


class Weighted(NamedTuple):
    """Coefficients in which probes that failed have no part.

    Attributes
    ----------
    c : array of shape (N,)
        Coefficients, zero for a failed probe.
    weight : 0-d array
        Factor of the sum: 1 over the number of valid probes (less one for leave-one-out).
    alive : 0-d array
        1 where there is an estimate at all, 0 where the step must change nothing.
    """

    c: Array
    weight: Array
    alive: Array


@dataclass(frozen=True)
class FiniteDifference:
    """Estimate from N finite differences of width `smoothing`.

    Parameters
    ----------
    probes : int
        Number N of random directions per step.
    smoothing : float
        Step mu along a direction, in units of the parameters.
    difference : {"central", "forward", "leave-one-out"}
    """

    probes: int
    smoothing: float
    difference: str = "central"

    def __post_init__(self) -> None:
        check_name("difference", self.difference, DIFFERENCES)
        check_count("probes", self.probes, 2 if self.difference == "leave-one-out" else 1)
        as_python(self, probes=int, smoothing=partial(positive, "smoothing"))

    @property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The points of a step in the order in which losses are expected."""
        mu = self.smoothing
        plus = [Evaluation(i, mu) for i in range(self.probes)]
        if self.difference == "leave-one-out":
            return tuple(plus)
        if self.difference == "forward":
            return (Evaluation(None, 0.0), *plus)
        minus = [Evaluation(i, -mu) for i in range(self.probes)]
        return tuple(e for pair in zip(plus, minus, strict=True) for e in pair)

    def differences(self, losses: Array) -> Array:
        """Return the coefficients c (N,) of a step's `losses`; NaN where a loss was not finite."""
        xp = _arrays.namespace(losses)
        finite = xp.isfinite(losses)
        nan = xp.full_like(losses, math.nan)
        losses = xp.where(finite, losses, nan)
        mu = self.smoothing
        if self.difference == "central":
            return (losses[0::2] - losses[1::2]) / (2.0 * mu)
        if self.difference == "forward":
            return (losses[1:] - losses[0]) / mu
        # The mean is taken of distances to the first valid loss, so that a large constant in F
        # does not cost digits; where all are equal the coefficients are exactly zero.
        count = xp.sum(xp.astype(finite, losses.dtype))
        first = xp.take(losses, xp.argmax(xp.astype(finite, xp.int32), keepdims=True), axis=0)
        apart = xp.where(finite, losses - first, xp.zeros_like(losses))
        mean = xp.sum(apart) / xp.where(count > 0, count, xp.ones_like(count))
        return xp.where(finite, apart - mean, nan) / mu

    def weigh(self, c: Array) -> Weighted:
        """Return the coefficients without the failed ones, and their common factor."""
        xp = _arrays.namespace(c)
        valid = xp.isfinite(c)
        count = xp.sum(xp.astype(valid, c.dtype))
        if self.difference == "leave-one-out":
            count = count - 1.0
        one = xp.ones_like(count)
        alive = xp.where(count > 0, one, one - one)
        return Weighted(
            xp.where(valid, c, xp.zeros_like(c)), alive / xp.where(count > 0, count, one), alive
        )

    def gradient(self, weighted: Weighted, coordinates: Array) -> Array:
        """Return ``weight * sum_i c_i B_i`` for coordinates of shape (N, ...)."""
        xp = _arrays.namespace(coordinates)
        shape = coordinates.shape[1:]
        # One matrix-vector product reads the block once and makes no temporary of its size.
        flat = xp.reshape(coordinates, (coordinates.shape[0], -1))
        return xp.reshape((weighted.c * weighted.weight) @ flat, shape)
