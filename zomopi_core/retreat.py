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
# F differs between steps at one point by so many noise levels, or such a part of it, if each step
# sees another sample of data; how much of their largest difference is kept from search to search.
_OTHER_SAMPLE = (20.0, 1e-6)
# Where that is expected, a rise from search to search by this part of what F had fallen shows it.
_RISEN = 0.1
_KEPT = 0.99


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
    sampled : bool
        Whether each step sees another sample of data: F has changed where nothing moved.
    expected : bool
        Whether each step may see another one; losses at the start may be the same for all.
    failures : int
        Of F at the iterate, and most probes, in a row.
    has_failed : bool
        Whether F failed anywhere.
    """

    first: float = math.nan
    lowest: float = math.inf
    last: float = math.nan
    usual: float = 0.0
    sampled: bool = False
    expected: bool = False
    failures: int = 0
    has_failed: bool = False

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

    def seen(self, value: float, noise: Noise, *, moves: bool) -> Descent:
        """Return the descent with a value at an iterate, and whether iterates move by now."""
        change = abs(value - self.last) if math.isfinite(self.last) else 0.0
        shown = self._shows_samples if moves else self._is_another_sample
        sampled = self.sampled or shown(value, noise)
        if not moves:  # all changes are accidents
            usual = max(change, self.usual)
        elif sampled:
            usual = max(change, _KEPT * self.usual)
        else:
            usual = 0.5 * (change + self.usual)
        return replace(self, last=value, usual=usual, sampled=sampled, failures=0)

    def _is_another_sample(self, value: float, noise: Noise) -> bool:
        """Tell whether F has changed since the start, where the iterate still is."""
        if not math.isfinite(self.first):
            return False
        levels, part = _OTHER_SAMPLE
        return abs(value - self.first) > max(levels * noise.level, part * abs(self.first))

    def _shows_samples(self, value: float, noise: Noise) -> bool:
        """Tell whether F has risen since the last search, if samples are expected.

        Another function may take a key that it does not use. Tuned steps seldom let it rise.
        """
        if not self.expected or not math.isfinite(self.last):
            return False
        fallen = max(self.first - self.lowest, 0.0) if math.isfinite(self.first) else 0.0
        levels, part = _OTHER_SAMPLE
        most = max(levels * noise.level, part * abs(self.last), _RISEN * fallen)
        return value - self.last > most

    def lowered(self, value: float) -> Descent:
        """Return the descent with a value that may be the lowest."""
        return replace(self, lowest=min(value, self.lowest))

    def failed(self, *, lost: bool) -> Descent:
        """Return the descent after a failure at the iterate; `lost` if most probes failed too.

        Some failures are bad luck. Where most probes fail too, time after time, the iterate has
        left the domain of F.
        """
        return replace(self, failures=self.failures + 1 if lost else 0)
