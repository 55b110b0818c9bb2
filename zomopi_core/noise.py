"""The noise of a function from a few of its values along a line (ECNoise).

Moré and Wild 2011, "Estimating computational noise", SIAM J. Sci. Comput. 33: in the table of
differences of values at equally spaced points, a smooth function fades from order to order and
noise stays. With independent noise of deviation s, differences of order k have the variance
``s^2 (2k)! / (k!)^2``.

A function with steps has noise of another kind: small differences say nothing, and its values
repeat. The least difference between them is the height of a step.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

# The points of a line, as parts of the smoothing: near enough for F to be a polynomial between
# them, far enough for float32 parameters to tell them apart.
LINE_POINTS = tuple(0.1 * i for i in range(7))
_MOST_TRIES = 3
# Noise of a function with steps, in steps: between two points it crosses many, up and down.
_STEPS = 6.0
# Estimates of this many orders in a row must agree within the factor for one to be believed.
_ORDERS = 3
_AGREEMENT = 4.0


def noise_level(values: Sequence[float]) -> float | None:
    """Estimate the standard deviation of the noise in equally spaced values of a function.

    Parameters
    ----------
    values : sequence of float
        At least five; F at ``x + i h d``, i = 0, 1, ..., for a small step h.

    Returns
    -------
    float or None
        The noise; 0.0 if all values are equal. None if the differences do not settle: the function
        changes too much from point to point, or a value is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from zomopi_core.noise import noise_level
    >>> noise = 1e-3 * np.random.default_rng(0).standard_normal(9)
    >>> level = noise_level([float(np.sin(1e-4 * i) + e) for i, e in enumerate(noise)])
    >>> 3e-4 < level < 3e-3
    True
    """
    if not all(map(math.isfinite, values)):
        return None
    if min(values) == max(values):
        return 0.0
    row = [v - values[0] for v in values]  # a constant in F would cost digits
    # Squares of huge or tiny differences would not be numbers; a power of two costs no digits.
    unit = 2.0 ** (math.frexp(max(map(abs, row)))[1] - 1)
    row = [d / unit for d in row]
    levels, changes_sign = [], []
    for k in range(1, len(values)):
        row = [b - a for a, b in itertools.pairwise(row)]
        mean_square = sum(d * d for d in row) / len(row)
        levels.append(math.sqrt(mean_square / math.comb(2 * k, k)))
        changes_sign.append(min(row) < 0 < max(row))
    for k in range(len(levels) - _ORDERS + 1):
        some = levels[k : k + _ORDERS]
        if changes_sign[k] and max(some) <= _AGREEMENT * min(some):
            return some[0] * unit
    return None


@dataclass(frozen=True)
class Noise:
    """What is known of the noise of a function; each method returns a new one.

    Attributes
    ----------
    level : float
        Standard deviation of a value; where the function has steps, at least their height.
    grain : float
        What steps of the function make of the noise of its differences; 0 where it has none.
    random : bool
        Whether the function gives another value at the same point.
    measured : bool
        Whether the level is known, or will not be.
    tries : int
        Lines that were evaluated for it: where an evaluation fails there is another.
    """

    level: float = 0.0
    grain: float = 0.0
    random: bool = False
    measured: bool = False
    tries: int = 0

    @property
    def rough(self) -> bool:
        """Whether small differences of the function say nothing."""
        return self.random or self.grain > 0

    @property
    def of_differences(self) -> float:
        """The level that a difference of two values meets."""
        return max(self.level, self.grain)

    def with_line(self, values: Sequence[float]) -> Noise:
        """Return the noise measured by values at the points `LINE_POINTS`."""
        level = noise_level(values) or 0.0
        tries = self.tries + 1
        measured = tries == _MOST_TRIES or all(map(math.isfinite, values))
        return replace(self, level=level, random=level > 0, measured=measured, tries=tries)

    def with_steps(self, values: Sequence[float]) -> Noise:
        """Return the noise with the height of the function's steps, where values repeat."""
        counts = Counter(x for x in values if math.isfinite(x))
        repeated = sum(n > 1 for n in counts.values())
        # One value alone may be a penalty or a limit of F.
        if repeated < 2 and 2 * len(counts) > counts.total():
            return self
        step = min((b - a for a, b in itertools.pairwise(sorted(counts))), default=0.0)
        return replace(self, level=max(self.level, step), grain=max(self.grain, _STEPS * step))

    def with_repetition(self, first: float, second: float) -> Noise:
        """Return the noise followed by two values at the same point."""
        # Noise of rounding is the same each time: it is not seen in a repetition.
        if first == second:
            return replace(self, random=False)
        # hypot, as squares of losses may overflow
        gap = math.sqrt(0.05) * (first - second)
        return replace(self, level=math.hypot(math.sqrt(0.9) * self.level, gap), random=True)

    def with_bound(self, most: float) -> Noise:
        """Return the noise where differences that should have stood out have shown its most.

        Seven values may have shown too little of it. The level becomes the geometric mean of both.
        """
        if not self.random:
            return self
        return replace(self, level=max(self.level, math.sqrt(self.level) * math.sqrt(most)))
