"""The minimiser of a function along a line, from values at a few steps, with or without noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# Differences of this many noise levels are taken at face value; smaller ones are fitted.
_CLEAR = 20.0
# What a fit keeps of the searches before: the slope falls as the run goes on.
_KEPT = 0.6
# The least mean slope on samples of data, as a part of its standard error: what chance may hide.
_HIDDEN = 0.5
# Where F is noisy, it is searched as far out as it takes for the parabola to rise by several noise
# levels, within a factor.
_VISIBLE = 8.0
_FAR = 16.0
# Range of a search's values over the noise that is more than chance; a slope over its standard
# error that is, where the curvature is lost in noise; the least minimiser, as a part of the
# distance searched.
_SEEN = 6.0
_SURE = 2.0
_LEAST_PART = 0.0625


def line_minimum(scales: Sequence[float], losses: Sequence[float]) -> float:
    """Return the step that minimises F along a line, near the steps at which it was evaluated.

    The minimiser of the parabola through the lowest value and its neighbours.

    Parameters
    ----------
    scales : sequence of float
        Steps in rising order, the first one 0.0, which may occur more than once.
    losses : sequence of float
        F at these steps; NaN or infinity is a step too far.

    Returns
    -------
    float
        Positive: at least an eighth of the smallest positive step, at most twice the largest.

    Examples
    --------
    >>> from zomopi_core.line_search import line_minimum
    >>> line_minimum([0.0, 0.5, 1.0, 2.0], [(a - 0.75) ** 2 for a in (0.0, 0.5, 1.0, 2.0)])
    0.75
    """
    smallest, largest = (f(s for s in scales if s > 0) for f in (min, max))
    lowest, highest = smallest / 8.0, 2.0 * largest
    # A step that failed bounds the others: beyond it there is nothing to extrapolate to.
    for step, loss in zip(scales, losses, strict=True):
        if not math.isfinite(loss):
            highest = min(highest, max(step / 2.0, lowest))
    steps, values = _means(scales, losses)
    if len(steps) < 3 or steps[0] > 0:  # nothing to fit: too far, or F(x) is unknown
        return min(smallest / 4.0, highest)
    i = min(max(values.index(min(values)), 1), len(steps) - 2)
    vertex = _vertex(steps[i - 1 : i + 2], values[i - 1 : i + 2])
    if vertex is None:  # no minimum between: as far as F still falls
        vertex = highest if values[-1] < values[0] else lowest
    return min(max(vertex, lowest), highest)


def _means(scales: Sequence[float], losses: Sequence[float]) -> tuple[list[float], list[float]]:
    """Return the distinct steps with finite values, and the means of these."""
    seen: dict[float, list[float]] = {}
    for step, loss in zip(scales, losses, strict=True):
        if math.isfinite(loss):
            seen.setdefault(step, []).append(loss)
    return list(seen), [sum(v) / len(v) for v in seen.values()]


def _vertex(steps: Sequence[float], values: Sequence[float]) -> float | None:
    """Return the minimiser of the parabola through three points, None if it opens downwards."""
    (a, b, c), (fa, fb, fc) = steps, values
    left, right = (fb - fa) / (b - a), (fc - fb) / (c - b)
    curvature = (right - left) / (c - a)
    if not curvature > 0:
        return None
    return 0.5 * (a + b) - 0.5 * left / curvature


def is_clear(losses: Sequence[float], noise: float) -> bool:
    """Tell whether the values along a line differ by much more than their noise."""
    finite = [x for x in losses if math.isfinite(x)]
    return not finite or max(finite) - min(finite) > _CLEAR * noise or noise == 0


class Parabola(NamedTuple):
    """Least squares for ``F(a) - F(0) = -s a + h a^2 / 2`` over several noisy line searches.

    Attributes
    ----------
    normal : tuple of float
        Upper half of the 2 x 2 normal matrix, row by row.
    right : tuple of float
        Right-hand side.
    """

    normal: tuple[float, float, float] = (0.0, 0.0, 0.0)
    right: tuple[float, float] = (0.0, 0.0)

    def add(
        self, scales: Sequence[float], losses: Sequence[float], earlier: float = 1.0
    ) -> Parabola:
        """Return the fit with another search; the earlier ones count less, by `earlier` too."""
        steps, values = _means(scales, losses)
        if not steps or steps[0] > 0:
            return self
        a, y = np.asarray(steps[1:]), np.asarray(values[1:]) - values[0]
        design: Any = np.stack([-a, 0.5 * a * a])
        new, right = design @ design.T, design @ y
        old = [_KEPT * earlier * value for value in (*self.normal, *self.right)]
        sums = (new[0, 0], new[0, 1], new[1, 1], right[0], right[1])
        total = [float(o + n) for o, n in zip(old, sums, strict=True)]
        return Parabola((total[0], total[1], total[2]), (total[3], total[4]))

    def solve(self) -> tuple[float, float]:
        """Return the slope s and the curvature h; (0, 0) if there is nothing to fit."""
        (aa, ab, bb), (ya, yb) = self.normal, self.right
        determinant = aa * bb - ab * ab
        if not determinant > 1e-12 * aa * bb:
            return 0.0, 0.0
        return (ya * bb - yb * ab) / determinant, (yb * aa - ya * ab) / determinant

    def minimum(self, noise: float) -> float:
        """Return the minimiser, NaN where neither slope nor curvature stands out of noise."""
        (slope, curvature), (s, h) = self.solve(), self.errors(noise)
        if curvature > h:
            return slope / curvature
        if abs(slope) <= _SURE * s:
            return math.nan
        return math.inf if slope > 0 else 0.0

    def errors(self, noise: float) -> tuple[float, float]:
        """Return the standard errors of slope and curvature for values with this noise."""
        aa, ab, bb = self.normal
        determinant = aa * bb - ab * ab
        if not determinant > 1e-12 * aa * bb:
            return math.inf, math.inf
        return noise * math.sqrt(bb / determinant), noise * math.sqrt(aa / determinant)


class MeanParabola(NamedTuple):
    """``-s a + h a^2 / 2`` averaged over lines along which each time another sample is seen.

    Weighted by the way that the iterate went since the line before, the mean of s is what F has
    fallen in the run over the length of its path. For steps of length eta and curvature h, the
    best constant eta for a run up to here is in proportion to it over h [1]_. It falls with the
    root of the number of steps. The minimiser of recent lines falls faster where curvatures
    differ: as soon as F falls no more along the steep directions.

    Attributes
    ----------
    weight : float
        Sum of the lines' weights.
    lines : float
        Number of lines of equal weight that would be as many.
    slope, curvature : float
        Means of s and h.
    last : float
        s of the last line.
    noise : float
        Standard deviation of s, from the differences of lines that follow one another: that s
        falls as the run goes on is no noise.

    References
    ----------
    .. [1] Ghadimi and Lan 2013, "Stochastic first- and zeroth-order methods for nonconvex
       stochastic programming", SIAM J. Optim. 23.
    """

    weight: float = 0.0
    lines: float = 0.0
    slope: float = 0.0
    curvature: float = 0.0
    last: float = 0.0
    noise: float = 0.0

    def add(self, slope: float, curvature: float, weight: float) -> MeanParabola:
        """Return the averages with another line, whose weight is positive."""
        total = self.weight + weight
        new, old = weight / total, self.weight / total
        squares = new * new + (old * old / self.lines if self.lines else 0.0)
        change = (slope - self.last) / math.sqrt(2.0) if self.lines else slope
        return MeanParabola(
            total,
            1.0 / squares,
            self.slope + new * (slope - self.slope),
            self.curvature + new * (curvature - self.curvature),
            slope,
            math.hypot(math.sqrt(old) * self.noise, math.sqrt(new) * change),
        )

    def weighing(self, weight: float) -> MeanParabola:
        """Return the same averages with another weight against the lines to come."""
        return self._replace(weight=weight)

    def shortened(self, factor: float) -> MeanParabola:
        """Return the averages that ask for a part of the way."""
        slope, last, noise = (factor * x for x in (self.slope, self.last, self.noise))
        return self._replace(slope=slope, last=last, noise=noise)

    @property
    def size(self) -> float:
        """What the slope of one sample may be."""
        return math.hypot(self.slope, self.noise)

    @property
    def minimum(self) -> float:
        """The minimiser that is sure of a descent; may be infinite.

        A line with no slope is added, for what is not known yet. The slope is then the mean less
        its standard error, or half of that error where this is more: few lines ask for short
        steps, and many that disagree do not end all motion.
        """
        if not self.curvature > 0:
            return math.inf if self.slope > 0 else 0.0
        if not self.lines:
            return 0.0
        known = self.lines / (self.lines + 1.0)
        spread = math.hypot(self.noise, math.sqrt(1.0 - known) * self.slope)
        error = math.sqrt(known / self.lines) * spread
        return max(known * self.slope - error, _HIDDEN * error) / self.curvature


class LineModel(NamedTuple):
    """A model of F along the direction of a run's steps, from one line search to the next.

    Attributes
    ----------
    parabola : Parabola
        Fit of the noisy searches.
    reach : float
        Distance at which F was last searched; 0.0 before.
    hidden : bool
        Whether the minimum lay nearer than noise lets it be told from the iterate.
    """

    parabola: Parabola = Parabola()
    reach: float = 0.0
    hidden: bool = False

    def distance(self, alpha: float, noise: float) -> float:
        """Return the step around which a noisy F is searched: its curvature can be seen there."""
        curvature = self.parabola.solve()[1]
        visible = math.sqrt(_VISIBLE * noise / curvature) if curvature > 0 else self.reach
        return min(max(alpha, visible), _FAR * alpha)

    def minimum(
        self, scales: Sequence[float], losses: Sequence[float], alpha: float, noise: float
    ) -> tuple[LineModel, float]:
        """Return the model after a search, and the minimiser.

        Parameters
        ----------
        scales, losses : sequence of float
            As in `line_minimum`.
        alpha : float
            The minimiser before.
        noise : float
            Standard deviation of a loss.
        """
        if is_clear(losses, noise):
            reach = 0.5 * self.distance(alpha, noise)
            return LineModel(Parabola().add(scales, losses), reach), line_minimum(scales, losses)
        return self._fitted(scales, losses, alpha, noise)

    def _fitted(
        self, scales: Sequence[float], losses: Sequence[float], alpha: float, noise: float
    ) -> tuple[LineModel, float]:
        """Return the model and the minimiser of a parabola through this and earlier searches."""
        reach = distance = self.distance(alpha, noise)
        # Far out F is another function, and a fit is led by its farthest points.
        nearer = min(1.0, reach / self.reach) if self.reach > 0 else 1.0
        parabola = self.parabola.add(scales, losses, nearer**4)
        minimum = parabola.minimum(noise)
        if not parabola.solve()[1] > 0:
            finite = [x for x in losses if math.isfinite(x)]
            seen = max(finite) - min(finite) > _SEEN * noise
            reach *= 0.5 if seen else 2.0
        # A shorter step than this could not be told from it. Else a few searches that went wrong
        # by chance make all points of the next ones coincide, and nothing is ever seen again.
        least = _LEAST_PART * distance
        hidden = not minimum >= least
        # Where nothing can be told nothing is changed.
        minimum = alpha if math.isnan(minimum) else max(minimum, least)
        return LineModel(parabola, reach, hidden), minimum
