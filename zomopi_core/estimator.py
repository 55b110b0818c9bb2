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
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import NamedTuple

from . import _arrays
from ._arrays import Array
from ._checks import as_python, check_count, check_name, positive

# Between a coefficient and an overflow lie the largest entry of a probe (below 10), a difference
# with the momentum, the sum over probes and the growth by sqrt(r) when momentum is carried over.
_HEADROOM = 2.0**-20

# The smoothing of the papers, for parameters of the size of a network's weights.
_START = 1e-3

DIFFERENCES = ("central", "forward", "leave-one-out")


class Evaluation(NamedTuple):
    """One point of a step: X + scale * P_probe, or X itself where `probe` is None.

    Where `snapshot` is True, the iterate at the last snapshot takes the place of X.
    """

    probe: int | None
    scale: float
    snapshot: bool = False


class Weighted(NamedTuple):
    """Coefficients in which probes that failed have no part.

    Where an estimator has second differences, `curvature` holds them, zero for a failed probe.

    Attributes
    ----------
    c : array of shape (N,)
        Coefficients, zero for a failed probe.
    weight : 0-d array
        Factor of the sum: 1 over the number of valid probes (less one for leave-one-out).
    alive : 0-d array
        1 where there is an estimate at all, 0 where the step must change nothing.
    curvature : array of shape (N,), or None
    """

    c: Array
    weight: Array
    alive: Array
    curvature: Array | None = None


@dataclass(frozen=True)
class FiniteDifference:
    """Estimate from N finite differences of width `smoothing`.

    Parameters
    ----------
    probes : int
        Number N of random directions per step.
    smoothing : float or "auto"
        Step mu along a direction, in units of the parameters. With ``"auto"`` whoever evaluates
        the function chooses it, from its noise and its curvature (`smoothing`), and `at` makes the
        estimator for it; until then it is 1e-3.
    difference : {"central", "forward", "leave-one-out"}
    full_batch : bool
        Whether the losses are wanted of all data, where the function is a mean over data of which
        it otherwise sees a batch.
    """

    probes: int
    smoothing: float | str
    difference: str = "central"
    full_batch: bool = False

    def __post_init__(self) -> None:
        check_name("difference", self.difference, DIFFERENCES)
        check_count("probes", self.probes, 2 if self.difference == "leave-one-out" else 1)
        as_python(self, probes=int)
        if not self.tuned:
            as_python(self, smoothing=partial(positive, "smoothing"))

    @property
    def tuned(self) -> bool:
        """Whether the smoothing is chosen during the run."""
        return isinstance(self.smoothing, str) and self.smoothing == "auto"

    @cached_property
    def width(self) -> float:
        """The step mu as a number."""
        return _START if isinstance(self.smoothing, str) else self.smoothing

    def at(self, width: float) -> FiniteDifference:
        """Return the estimator with another step mu."""
        return replace(self, smoothing=width)

    @property
    def noise_gain(self) -> float:
        """Standard deviation of mu c for a loss with noise of deviation 1."""
        return {"central": math.sqrt(0.5), "forward": math.sqrt(2.0)}.get(self.difference, 1.0)

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The points of a step in the order in which losses are expected."""
        mu = self.width
        plus = [Evaluation(i, mu) for i in range(self.probes)]
        if self.difference == "leave-one-out":
            return tuple(plus)
        if self.difference == "forward":
            return (Evaluation(None, 0.0), *plus)
        minus = [Evaluation(i, -mu) for i in range(self.probes)]
        return tuple(e for pair in zip(plus, minus, strict=True) for e in pair)

    @cached_property
    def compares(self) -> bool:
        """Whether some points lie around a snapshot."""
        return any(e.snapshot for e in self.evaluations)

    @cached_property
    def consecutive(self) -> tuple[int, int]:
        """The range of evaluations around X at probes 0, 1, ..., each alone or +mu before -mu."""
        first = sum(1 for e in self.evaluations[:1] if e.probe is None)
        last, points = first, self.evaluations[first:]
        mirrored = len(points) > 1 and points[0].probe == points[1].probe
        for i, point in enumerate(points):
            probe, sign = (i // 2, 1 - 2 * (i % 2)) if mirrored else (i, 1)
            if point != Evaluation(probe, sign * points[0].scale):
                break
            last += 1
        return first, last - (last - first) % (2 if mirrored else 1)

    def differences(self, losses: Array) -> Array:
        """Return the coefficients c (N,) of a step's `losses`; NaN where a loss was not finite."""
        with _arrays.quiet():
            return self._differences(losses)

    def _differences(self, losses: Array) -> Array:
        xp = _arrays.namespace(losses)
        finite = xp.isfinite(losses)
        if not _arrays.all_hold(finite):
            # Unlike infinities, NaN passes through differences without a warning.
            losses = xp.where(finite, losses, math.nan)
        mu = self.width
        if self.difference == "central":
            return (losses[0::2] - losses[1::2]) / (2.0 * mu)
        if self.difference == "forward":
            return (losses[1:] - losses[0]) / mu
        # The mean is taken of distances to the first valid loss, so that a large constant in F
        # does not cost digits; where all are equal the coefficients are exactly zero.
        first = xp.take(losses, xp.argmax(xp.astype(finite, xp.int32), keepdims=True), axis=0)
        apart = losses - first
        count = xp.sum(xp.astype(finite, losses.dtype))
        mean = xp.sum(xp.where(finite, apart, 0.0)) / xp.where(count > 0, count, 1.0)
        return (apart - mean) / mu

    def weigh(self, c: Array, limit: float | None = None) -> Weighted:
        """Return the coefficients without the failed ones, and their common factor.

        Parameters
        ----------
        c : array of shape (N,)
        limit : float, optional
            Magnitude up to which a coefficient is used; by default the largest number of c's
            dtype over 2**20, so that no product with a probe overflows.
        """
        xp = _arrays.namespace(c)
        valid = xp.abs(c) <= (limit or _arrays.largest_number(c) * _HEADROOM)  # false for NaN
        lost = 1.0 if self.difference == "leave-one-out" else 0.0
        if _arrays.all_hold(valid):
            alive = _arrays.number(1.0, c)
            return Weighted(c, alive / (self.probes - lost), alive)
        count = xp.sum(xp.astype(valid, c.dtype)) - lost
        alive = xp.astype(count > 0, c.dtype)
        # one over the count where there is one, without a division by zero elsewhere
        weight = alive / (alive * count + (1.0 - alive))
        return Weighted(xp.where(valid, c, 0.0), weight, alive)

    def gradient(self, weighted: Weighted, coordinates: Array) -> Array:
        """Return ``weight * sum_i c_i B_i`` for coordinates of shape (N, ...)."""
        count, shape = coordinates.shape[0], coordinates.shape[1:]
        # One matrix-vector product reads the block once and makes no temporary of its size.
        flat = _arrays.reshaped(coordinates, (count, -1))
        return _arrays.reshaped((weighted.c * weighted.weight) @ flat, shape)
