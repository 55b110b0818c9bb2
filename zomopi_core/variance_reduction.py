"""Differences to a snapshot: the noise of a batch, taken from itself (MeZO-SVRG).

arXiv 2404.08080: one batch and one probe at the iterate X and at a snapshot Y, whose estimate on
all data is known. What the batch does to both cancels as far as X is near Y.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ._arrays import Array
from .estimator import Evaluation, FiniteDifference
from .momentum import Momentum


@dataclass(frozen=True)
class DifferenceToSnapshot(FiniteDifference):
    """Finite differences at the iterate, less those at the snapshot: ``c_i = c_i(X) - c_i(Y)``.

    A probe with a loss that is not finite, at X or at Y, is left out.
    """

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """All points around the iterate, then the same around the snapshot."""
        around = super().evaluations
        return (*around, *(e._replace(snapshot=True) for e in around))

    def _differences(self, losses: Array) -> Array:
        half = losses.shape[0] // 2
        return super()._differences(losses[:half]) - super()._differences(losses[half:])


@dataclass(frozen=True)
class ControlVariate(Momentum):
    """The direction is ``M + G`` for an M that stays: the estimate made at a snapshot."""

    def init(self, zeros: Array) -> None:
        """Return None: M is all there is."""

    def update(
        self, momentum: Array, kept: Any, gradient: Array, alive: Array, started: Array
    ) -> tuple[Array, Any, Array]:
        """Return (M, None, M + G)."""
        return momentum, None, momentum + gradient
