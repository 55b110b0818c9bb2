"""Where an optimizer is: its parameters and all that belongs to them."""

from __future__ import annotations

from typing import Any, NamedTuple

from .method import State
from .tuning import Tuning
from .update import Change


class Snapshot(NamedTuple):
    """Parameters remembered by a method with `Method.snapshots`, and the step they began."""

    params: Any
    step: int


class Point(NamedTuple):
    """Parameters and the method's state that belongs to them; replaced as a whole."""

    params: Any
    state: State
    refreshed_at: int  # step for which the subspace was drawn
    tuning: Tuning | None  # None where learning rate and smoothing were given
    direction: tuple[Change, ...]  # of the last step, for rate 1; empty where none is needed
    best: Any  # where a retreat leads, if the optimizer itself remembers it; see `Stepper`
    best_at: int = -1  # step that chose it
    snapshot: Snapshot | None = None
    rate_factor: float = 1.0  # below 1 after a divergence

    @property
    def attends(self) -> bool:
        """Whether the next step looks at its losses, and waits for a device that has them."""
        return self.tuning is not None and self.tuning.attentive

    @property
    def averages(self) -> bool:
        """Whether `best` is an average, of one iterate at first."""
        return self.best is not None and self.tuning is not None and self.tuning.averages

    @property
    def estimate(self) -> Any:
        """The parameters, or the average where noise hides the minimum."""
        if self.averages and self.tuning is not None and self.tuning.weight < 1.0:
            return self.best
        return self.params
