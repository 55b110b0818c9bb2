"""When an iterate is given up: F has risen at it beyond all accidents, or is not defined there.

If F has risen at the iterate by half of what it had fallen before, by several times its usual
change, and no point of the line search makes up for it, or if it fails there time after time, the
iterate goes back to the best one at which it was measured, and the rate falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .noise import Noise

# Differences of F at two iterates over its noise that are more than chance.
_CHANCE = 6.0
# A rise of F by this many usual changes is no accident.
_JUMP = 4.0
# Failures at the iterate, one step after the other, that say it has left the domain of F.
_LOST = 4


@dataclass(frozen=True)
class Descent:
    """F at the iterates at which it was measured; each method returns a new one.

    Attributes
    ----------
    first : float
        F at the start, NaN where it was not measured.
    lowest : float
        F at the best iterate.
    last : float
        F at the last one.
    usual : float
        Its change from one to the next; it holds what batches of data, drawn anew at each step, do
        to F.
    failures : int
        Of F at the iterate, and most probes, in a row.
    """

    first: float = math.nan
    lowest: float = math.inf
    last: float = math.nan
    usual: float = 0.0
    failures: int = 0

    @property
    def lost(self) -> bool:
        """Whether the iterate has left the domain of F."""
        return self.failures >= _LOST

    def is_best(self, value: float, noise: Noise) -> bool:
        """Tell whether a value is as low as the lowest, within the noise."""
        return value <= self.lowest + _CHANCE * noise.level

    def has_risen(self, value: float, nearby: float, noise: Noise) -> bool:
        """Tell whether F is too high at the iterate.

        Parameters
        ----------
        value : float
            F at the iterate.
        nearby : float
            The lowest value along the line, or the same.
        noise : Noise
        """
        fallen = max(self.first - self.lowest, 0.0) if math.isfinite(self.first) else 0.0
        allowed = max(0.5 * fallen, value - nearby, _JUMP * self.usual)
        return not self.is_best(value - allowed, noise)

    def from_start(self, value: float) -> Descent:
        """Return the descent that begins with a value, which may be a failure."""
        lowest = value if math.isfinite(value) else math.inf
        return replace(self, first=value, lowest=lowest)

    def seen(self, value: float, *, moves: bool) -> Descent:
        """Return the descent with a value at an iterate, and whether iterates move by now."""
        change = abs(value - self.last) if math.isfinite(self.last) else 0.0
        # Before they move all changes are accidents.
        usual = 0.5 * (change + self.usual) if moves else max(change, self.usual)
        return replace(self, last=value, usual=usual, failures=0)

    def lowered(self, value: float) -> Descent:
        """Return the descent with a value that may be the lowest."""
        return replace(self, lowest=min(value, self.lowest))

    def failed(self, *, lost: bool) -> Descent:
        """Return the descent after a failure at the iterate; `lost` if most probes failed too.

        Some failures are bad luck. Where most probes fail too, time after time, the iterate has
        left the domain of F.
        """
        return replace(self, failures=self.failures + 1 if lost else 0)
