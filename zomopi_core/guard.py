"""The way back from a divergence: to the best point, with a shorter step.

For runs whose learning rate is given. Where it is tuned, the tuning retreats by itself
(`zomopi_core.tuning`).
"""

from __future__ import annotations

import math
from typing import Any

from . import _arrays
from .method import Method, State
from .point import Point

# Steps in a row far above the best loss that are no accident, and how far that is: in units of
# what F had fallen, and of how much the losses of the first step differed.
PATIENCE = 50
FAR = 10.0
# What becomes of the learning rate.
SHRINK = 0.25


class Guard:
    """Watches the losses of the steps.

    Attributes
    ----------
    returns : list of int
        Steps before which the iterate went back to the best point.
    """

    def __init__(self) -> None:
        self.returns: list[int] = []
        self._first = math.nan
        self._spread = 0.0  # of the first step's losses
        self._above = 0  # steps in a row
        self._sum = 0.0  # of their losses

    def diverged(self, losses: list[float], loss: float, best: float) -> bool:
        """Take the losses of a step and their mean; tell whether to go back.

        Parameters
        ----------
        losses : list of float
        loss : float
            NaN where all of them failed, which is as far above the best loss as can be.
        best : float
            The lowest loss seen.
        """
        if math.isnan(self._first):
            if math.isfinite(loss):
                finite = [x for x in losses if math.isfinite(x)]
                self._first, self._spread = loss, max(finite) - min(finite)
            return False
        scale = max(self._first - best, self._spread)
        if loss - best <= FAR * scale:
            self._above, self._sum = 0, 0.0
            return False
        self._above += 1
        self._sum += loss
        # A schedule that began with too long steps may be on its way down again.
        recovers = loss < self._sum / self._above
        return self._above >= PATIENCE and not recovers and math.isfinite(best)

    def returned(self, step: int) -> None:
        """Note that the iterate went back."""
        self.returns.append(step)
        self._above, self._sum = 0, 0.0

    def state(self) -> dict[str, Any]:
        """Return all that the guard remembers."""
        return {
            "returns": tuple(self.returns),
            "first": self._first,
            "spread": self._spread,
            "above": self._above,
            "sum": self._sum,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.returns, self._first = list(state["returns"]), state["first"]
        self._spread, self._above = state["spread"], state["above"]
        self._sum = state["sum"]


def back_at(point: Point, best: Any, method: Method) -> Point:
    """Return `point` with the parameters `best`, no momentum, and a shorter step."""
    return point._replace(
        params=best,
        state=_without_momentum(point.state, method),
        rate_factor=SHRINK * point.rate_factor,
    )


def _without_momentum(state: State, method: Method) -> State:
    leaves = []
    for leaf in state.leaves:
        zeros = _arrays.namespace(leaf.momentum).zeros_like(leaf.momentum)
        rule = method.rule(leaf.momentum.ndim)
        leaves.append(leaf._replace(momentum=zeros, moments=rule.momentum.init(zeros)))
    return state._replace(leaves=tuple(leaves), started=state.started * 0.0)
