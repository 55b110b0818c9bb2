"""The smoothing mu of a run: as small as the noise of F allows, as large as the way to go.

**At the start** mu is small, and is raised until the differences of a step stand three times above
the noise; such steps estimate nothing and change nothing.

**Later** a third of the way to the line's minimum, as a length, is small against the radius over
which the gradient turns; mu is that, or more where the noise asks for it, and never less than the
floating-point format of the parameters can represent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .estimator import FiniteDifference
from .look import Geometry, Size, look, sizes_of
from .noise import Noise
from .rule import Leaves

# The smoothing at the start, its least value in units in the last place, and its largest, over
# the size of the parameters.
_START = 1e-3
_LEAST = 16.0
_TINY = 1e-18  # the least of all, where the parameters are zero
_MOST = 3.0
# Differences of a step over their noise that are aimed at, and over what steps of F make of it;
# that are waited for at the start, and above which a noise of seven values is not doubted; how
# much mu grows at a time, and how often at most.
_ABOVE_NOISE = 2.0
_ABOVE_STEPS = 1.5
_GOOD_ENOUGH = 3.0
_CERTAIN = 20.0
_GROWTH = 4.0
_MOST_RAISES = 12
# Mean rise over the differences of a step above which mu is too large, and how much it falls.
_CURVED = 2.0
_CURVED_STEP = 8.0
# The smoothing as a part of the way to the minimum along a line.
_PART_OF_WAY = 0.3
# The most of it that noise makes the smoothing: further out F is another function.
_MOST_OF_WAY = 8.0
_CHANGE = 4.0  # largest change of mu at a time


@dataclass(frozen=True)
class Smoothing:
    """The state of the smoothing; each method returns a new one.

    Attributes
    ----------
    tuned : bool
        Whether it is measured, or was given.
    width, least, most : float
        mu now, and its bounds; these grow with the parameters.
    first : float
        mu at the start.
    gain : float
        Standard deviation of mu c for a loss with noise 1.
    settled : bool
        Whether it is large enough for differences to stand above the noise.
    raises : int
        How often it was raised before.
    steepest : float
        Largest root mean square of c seen meanwhile.
    spread : float
        Root mean square of mu c at the last raise.
    """

    tuned: bool
    width: float
    least: float
    most: float
    first: float
    gain: float
    settled: bool
    raises: int = 0
    steepest: float = 0.0
    spread: float = 0.0

    def grown(self, sizes: Sequence[Size]) -> Smoothing:
        """Return the smoothing with bounds that follow parameters as they grow.

        Else a probe would be lost in the rounding of what has moved far from where it began.
        """
        _, least, most = _bounds(sizes)
        return replace(self, least=max(least, self.least), most=max(most, self.most))

    def settle(
        self, noise: Noise, slope: float, losses: Sequence[float], start: float
    ) -> Smoothing:
        """Return more smoothing, less of it, or settled if it is right.

        Parameters
        ----------
        noise : Noise
        slope : float
            Root mean square of the step's c.
        losses : sequence of float
            Of the step's probes.
        start : float
            F at the iterate.
        """
        finite = [x for x in losses if math.isfinite(x)]
        spread = slope * self.width
        enough = self._stands_out(noise, spread, finite)
        if enough and self.raises == 0 and self._is_curved(noise, spread, finite, start):
            width = max(self.width / _CURVED_STEP, self.least)
            if width < self.width:
                return replace(self, width=width, first=width)
        if enough or self.raises == _MOST_RAISES or self.width >= self.most:
            return replace(self, settled=True)
        if slope < 0.5 * self.steepest and spread > _GOOD_ENOUGH * self.gain * noise.level:
            # Too far for F to go on as it began: the smoothing before was the best there is.
            return replace(self, settled=True, width=self.width / _GROWTH)
        return self._raised(slope)

    def _stands_out(self, noise: Noise, spread: float, finite: Sequence[float]) -> bool:
        """Tell whether the differences of a step stand above the noise."""
        if not 2 * len(set(finite)) > len(finite):
            return False
        if not spread >= _GOOD_ENOUGH * self.gain * noise.of_differences:
            return False
        if spread < _CERTAIN * self.gain * noise.level:
            # Seven values may have shown too little of the noise; then the differences do not
            # grow with the smoothing.
            return 0.0 < self.spread < 0.5 * spread
        return True

    @staticmethod
    def _is_curved(noise: Noise, spread: float, finite: Sequence[float], start: float) -> bool:
        """Tell whether curvature makes the differences: parameters of a smaller scale."""
        excess = sum(finite) / len(finite) - start
        return excess > _CURVED * spread > 10.0 * noise.level

    def _raised(self, slope: float) -> Smoothing:
        spread = slope * self.width
        growth = _GROWTH if spread > 0 else _GROWTH**2
        return replace(
            self,
            width=min(self.width * growth, self.most),
            raises=self.raises + 1,
            steepest=max(slope, self.steepest),
            spread=spread,
        )

    def toward_minimum(
        self, noise: Noise, slope: float, alpha: float, geometry: Geometry
    ) -> Smoothing:
        """Return the smoothing for the next steps, where alpha is the minimiser along a line."""
        wanted = _PART_OF_WAY * alpha * geometry.direction / geometry.probe
        return self._followed(noise, slope, wanted, _MOST_OF_WAY * wanted / _PART_OF_WAY)

    def above_noise(self, noise: Noise, slope: float) -> Smoothing:
        """Return the smoothing for the next steps, where there is no line search."""
        # From a smaller step than the first the noise itself would look like a slope.
        return self._followed(noise, slope, self.first, math.inf)

    def _followed(self, noise: Noise, slope: float, wanted: float, most: float) -> Smoothing:
        """Return a smoothing nearer to what is wanted, more where noise asks for it."""
        needed = self.gain * max(_ABOVE_NOISE * noise.level, _ABOVE_STEPS * noise.grain)
        if needed > 0:
            # Equal losses lie on one step of F.
            above = needed / slope if slope > 0 else math.inf
            wanted = max(wanted, min(most, above))
        wanted = math.sqrt(self.width * wanted)  # the slope of one step is uncertain
        wanted = min(max(wanted, self.width / _CHANGE), self.width * _CHANGE)
        return replace(self, width=min(max(wanted, self.least), self.most))


def start_smoothing(estimator: FiniteDifference, leaves: Leaves) -> Smoothing:
    """Return the smoothing of a run that starts from these leaves."""
    smallest, least, most = _bounds(look(sizes=sizes_of(leaves)).sizes)
    width = max(_START * smallest, least) if estimator.tuned else estimator.width
    return Smoothing(
        tuned=estimator.tuned,
        width=width,
        least=least,
        most=most,
        first=width,
        gain=estimator.noise_gain,
        settled=not estimator.tuned,
    )


def _bounds(sizes: Sequence[Size]) -> tuple[float, float, float]:
    """Return the smallest of the parameters' sizes, and the bounds of the smoothing."""
    smallest, largest = (f(size.typical for size in sizes) for f in (min, max))
    least = max(_LEAST * size.epsilon * size.rms for size in sizes)
    return smallest, max(least, _TINY * smallest), _MOST * largest
