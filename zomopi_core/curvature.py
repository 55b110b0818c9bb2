"""Probes shaped by a diagonal curvature, estimated from second differences (HiZOO).

arXiv 2402.15173: three evaluations a probe, ``L0, L+, L-`` at X and X +- mu z / sqrt(H).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from . import _arrays
from ._arrays import Array
from ._checks import as_python, fraction
from .estimator import _HEADROOM, Evaluation, FiniteDifference, Weighted
from .sampling import Randomness
from .subspace import Subspace


@dataclass(frozen=True)
class SecondDifference(FiniteDifference):
    """Central differences, and second ones from a baseline that all probes share.

    ``c = (L+ - L-) / (2 mu)`` and ``h = abs(L+ + L- - 2 L0) / mu^2``.
    """

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The baseline, then +1, -1, +2, -2, ..."""
        return (Evaluation(None, 0.0), *super().evaluations)

    def _differences(self, losses: Array) -> Array:
        """Return c and h as the rows of an array (2, N); NaN where a loss was not finite."""
        xp = _arrays.namespace(losses)
        c = super()._differences(losses[1:])
        # from differences to the baseline, so that a large constant in F does not cost digits
        rise = xp.where(xp.isfinite(losses), losses, xp.nan) - losses[0]
        second = xp.abs(rise[1::2] + rise[2::2]) / self.width**2
        return xp.stack([c, second])

    def weigh(self, c: Array, limit: float | None = None) -> Weighted:
        """Return the coefficients without the failed ones, and the curvatures."""
        xp = _arrays.namespace(c)
        limit = limit or _arrays.largest_number(c) * _HEADROOM
        valid = (xp.abs(c[0, ...]) <= limit) & (c[1, ...] <= limit)
        weighted = super().weigh(xp.where(valid, c[0, ...], xp.nan), limit)
        return weighted._replace(curvature=xp.where(valid, c[1, ...], 0.0))


@dataclass(frozen=True)
class DiagonalMetric(Subspace):
    """Probes ``z / sqrt(H)`` with ``H <- (1 - s) H + s / 2 h H z^2``, from H = 1.

    The frame is H, in the leaf's shape; the coordinates are z.

    Parameters
    ----------
    rate : float
        s.
    """

    rate: float = 1e-6
    refresh_every: Any = None

    def __post_init__(self) -> None:
        as_python(self, rate=partial(fraction, "curvature_rate"))

    def coordinate_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape itself."""
        return shape

    def columns(self, shape: tuple[int, ...]) -> int:
        """Return the length of the last axis, 1 if there is none."""
        return shape[-1] if shape else 1

    def init(self, random: Randomness, leaf: int, x: Array) -> Array:
        """Return ones."""
        xp = _arrays.namespace(x)
        return xp.ones(x.shape, dtype=_arrays.working_dtype(x), device=_arrays.device(x))

    def factors(self, frame: Array | None, coordinates: Array) -> tuple[None, Array]:
        """Return (None, z / sqrt(H))."""
        return None, coordinates / _arrays.namespace(frame).sqrt(frame)

    def project(self, frame: Array | None, gradient: Array) -> Array:
        """Return ``G / sqrt(H)``."""
        return _arrays.to_like(gradient, gradient) / _arrays.namespace(frame).sqrt(frame)

    def observe(self, frame: Array | None, coordinates: Array, weighted: Weighted) -> Array | None:
        """Return H after a step's second differences, the mean over its probes."""
        assert frame is not None
        xp = _arrays.namespace(frame)
        squares = xp.reshape(coordinates * coordinates, (coordinates.shape[0], -1))
        mean = (weighted.curvature * weighted.weight) @ squares
        factor = 0.5 * xp.reshape(mean, frame.shape) - weighted.alive
        return frame * (1.0 + self.rate * factor)
