"""The learning rate of a run, from line searches along the direction of the step before.

At some steps F is also evaluated at a few points along that direction, and a parabola gives the
minimiser alpha. With a momentum of memory T = 1/(1 - beta) the rate is alpha / T: while the
momentum keeps its direction, the steps together go as far as the line search says. Nothing else
decides how far to go, so the rate follows the problem from any first guess, rises and falls with
the distance that is left, and does not depend on the scale of F or on a constant in it.

Until the first minimum is found, on a grid of powers of four, nothing moves, and the estimates at
the start are averaged.

Where each step sees another sample of data, a sample's slope along a line may be anything, also
upwards, and says little. Slopes and curvatures are then averaged over all searches of the run,
which are made more often, and the first one is over where the curvature shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from .line_search import LineModel, MeanParabola, Parabola, line_minimum
from .look import Geometry
from .noise import Noise
from .smoothing import Smoothing

# Search for the first minimum: powers of four, two at a time, so that no point lies far beyond it.
_COARSE = (1.0, 4.0)
_MOST_ROUNDS = 16
# Later searches: F at the iterate and around the minimum found last.
_FINE = (0.5, 1.0, 2.0)
# Where F is noisy: more of them.
_NOISY = (0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0)
_STEPPED = _NOISY[2:]  # such a function has the same value at the same point
# Weight of the newest of n iterates in an average: so many over n; 1 would be the plain mean.
_RECENT = 3.0
# Fewer points tell nothing of a line.
_FEWEST = 3
# Change of alpha at a search, and what is small beside it.
_CHANGE = 4.0
_STEADY = 2.0
# Line searches on a function with steps find its roughest directions, and the rate that they ask
# for is too small for the others: twice as much is better on most (docs, tuning).
_PACE_ON_STEPS = 2.0
# At least so many evaluations lie between two searches; a search takes three to seven.
_BETWEEN = 80


@dataclass(frozen=True)
class RateSearch:
    """The state of the line searches of a run; each method returns a new one.

    Attributes
    ----------
    tuned : bool
        Whether the rate is searched for. If it was given, this counts steps alone.
    memory : float
        Steps over which the momentum averages.
    evaluations : int
        Evaluations of a step's probes.
    longest : float
        Frobenius norm that a step does not exceed.
    rate : float
        Learning rate of the next step; 0.0 until the first minimum was found.
    alpha : float
        Minimiser along the direction, or the start of the grid before there is one; 0.0 before
        there is a direction.
    found : bool
        Whether the first minimum was found.
    rounds : int
        Grids of the first search that were tried.
    shrunk : bool
        Whether the first search began too far out.
    probe : float
        Length of a probe that was made for noise, in units of the direction's; else infinite.
    model : LineModel
        Of the later searches.
    hidden : int
        Searches since the last retreat whose minimum noise has hidden.
    mean : MeanParabola or None
        Of lines on samples of data, where each step sees another one.
    steps : int
        Steps that made an estimate.
    next_search : int
        Number of them before the next search.
    last_line : int
        Number of them before the last line on samples.
    """

    tuned: bool
    memory: float
    evaluations: int
    longest: float = math.inf
    rate: float = 0.0
    alpha: float = 0.0
    found: bool = False
    rounds: int = 0
    shrunk: bool = False
    probe: float = math.inf
    model: LineModel = field(default_factory=LineModel)
    hidden: int = 0
    mean: MeanParabola | None = None
    steps: int = 0
    next_search: int = 1
    last_line: int = 0

    @property
    def due(self) -> bool:
        """Whether it is time for a search."""
        return self.steps >= self.next_search

    @property
    def weight(self) -> float:
        """Weight of the next iterate in an average of those at the searches, 1.0 for itself.

        Where noise hides the minimum the iterates go around it. The more often it has, the longer
        is the average: of n such searches about the last half count.
        """
        if self.mean is not None:
            return 1.0
        return min(1.0, _RECENT / (self.hidden + _RECENT - 1.0))

    @property
    def begun(self) -> bool:
        """Whether there is a first guess."""
        return self.alpha > 0

    def scales(self, noise: Noise) -> tuple[float, ...]:
        """Return the steps along the direction at which F is needed now; often none."""
        if not self.tuned or not self.begun or not self.due:
            return ()
        if not self.found:
            return (0.0, *(self.alpha * s for s in _COARSE))
        if noise.rough:
            distance = self.model.distance(self.alpha, noise.level)
            return tuple(distance * s for s in (_NOISY if noise.random else _STEPPED))
        return self.around(self.alpha)

    @staticmethod
    def around(distance: float) -> tuple[float, ...]:
        """Return the steps of a later search around a distance, where F has no noise."""
        return (0.0, *(distance * s for s in _FINE))

    def passed(self) -> RateSearch:
        """Return the search after a step."""
        return replace(self, steps=self.steps + 1)

    def postponed(self, steps: int = 1) -> RateSearch:
        """Return the search with the next line after some steps."""
        return replace(self, next_search=self.steps + steps)

    def rested(self) -> RateSearch:
        """Return the search with the next line as late as it ever is."""
        return self.postponed(self.interval)

    def begin(self, smoothing: Smoothing, geometry: Geometry) -> RateSearch:
        """Return the search with its first guess, from the size of a probe."""
        if not geometry.direction > 0 or not geometry.probe > 0:
            return self
        # As far as a probe, where noise hides what is nearer, else a tenth of it.
        part = 1.0 if smoothing.raises else 0.1
        alpha = part * smoothing.width * geometry.probe / geometry.direction
        return replace(self, alpha=alpha)

    def with_probe(self, smoothing: Smoothing, geometry: Geometry) -> RateSearch:
        """Return the search with the length of a probe, if that was made for noise."""
        fits_noise = smoothing.raises > 0 or not smoothing.tuned
        if not geometry.direction > 0 or not fits_noise:
            return replace(self, probe=math.inf)
        return replace(self, probe=smoothing.width * geometry.probe / geometry.direction)

    def shortened(self, geometry: Geometry) -> RateSearch:
        """Return the search with a step that the parameters' dtype can hold."""
        part = self.longest / geometry.direction if geometry.direction > 0 else math.inf
        if self.alpha <= part:
            return self
        return replace(self, alpha=part, rate=min(self.rate, part))

    def retreated(self) -> RateSearch:
        """Return the search where the iterate goes back: the last steps were too long."""
        mean = None if self.mean is None else self.mean.shortened(0.25)
        shorter = replace(self, alpha=self.alpha / 4.0, rate=self.rate / 4.0, hidden=0, mean=mean)
        return shorter.postponed(2)

    def can_tell(self, scales: Sequence[float]) -> bool:
        """Tell whether these points are enough to find a minimum."""
        return len(set(scales) if self.found else scales) >= _FEWEST

    def told(
        self,
        scales: Sequence[float],
        losses: Sequence[float],
        noise: Noise,
        *,
        sampled: bool = False,
    ) -> RateSearch:
        """Return the search after a line.

        Parameters
        ----------
        scales, losses : sequence of float
            Steps in rising order, of which the first is 0.0, and F there; its value at 0.0, or one
            of several, is finite.
        noise : Noise
        sampled : bool
            Whether each step sees another sample of data.
        """
        if not self.can_tell(scales):
            return self.postponed()
        if sampled and self.mean is None:
            return replace(self, mean=MeanParabola()).told(scales, losses, noise)
        find = self._later_minimum if self.found else self._first_minimum
        return find(scales, losses, noise)

    def _first_minimum(
        self, scales: Sequence[float], losses: Sequence[float], noise: Noise
    ) -> RateSearch:
        """Return the search after a grid: a minimum, or another grid."""
        tried = [(s, x) for s, x in zip(scales, losses, strict=True) if math.isfinite(x)]
        base, ahead = tried[0][1], [(s, x) for s, x in tried if s > 0]
        if not ahead:
            return self._nearer()
        tolerance = 2.0 * math.sqrt(2.0) * noise.level
        last = self.rounds + 1 == _MOST_ROUNDS
        if self.mean is not None and len(tried) == len(scales):
            return self._first_on_samples(self.mean, tried, tolerance, noise)
        lowest = min(x for _, x in ahead)
        risen = ahead[-1][1] > lowest + tolerance or not math.isfinite(losses[-1])
        # As far as a probe a direction that is any good shows. What is seen further out says
        # nothing of the slope here.
        enough = noise.rough and ahead[-1][0] >= self.probe
        if lowest < base - tolerance:
            minimum = line_minimum(scales, losses)
            between = risen or minimum < ahead[-1][0]
            seen = between or last or (enough and noise.random)
            return self._at(minimum, noise) if seen else self._farther()
        hidden = [s for s, x in ahead if x <= base + tolerance]
        if hidden and enough:
            return self._at(self.probe, noise)
        if hidden:  # the minimum lies below the noise, or further out
            seen = risen or self.shrunk or last
            return self._at(hidden[-1], noise) if seen else self._farther()
        return self._at(scales[1] / 8.0, noise) if last else self._nearer()

    def _first_on_samples(
        self, mean: MeanParabola, tried: list[tuple[float, float]], tolerance: float, noise: Noise
    ) -> RateSearch:
        """Return the search after a grid along which F goes up or down by chance."""
        slope, curvature = Parabola().add([s for s, _ in tried], [x for _, x in tried]).solve()
        nearest, farthest = tried[1][0], tried[-1][0]
        mean = mean.add(slope, curvature, 1.0)
        bend = 0.5 * curvature * farthest**2
        # The slope of one sample may vanish by chance, so that the first grid is never the last.
        if self.rounds and bend > max(tolerance, 0.5 * mean.size * farthest):
            # Nearer grids show slopes, but no curvature.
            mean = mean._replace(curvature=curvature)
            return self._begun_on_samples(mean, mean.minimum or nearest, noise)
        if self.rounds + 1 == _MOST_ROUNDS:
            return self._begun_on_samples(mean, nearest, noise)
        return replace(self, mean=mean)._farther()

    def _begun_on_samples(self, mean: MeanParabola, minimum: float, noise: Noise) -> RateSearch:
        """Return the search with its first minimum; all grids count as one step."""
        found = self._at(minimum, noise)
        return replace(found, mean=mean.weighing(found.rate), last_line=self.steps)

    def _farther(self) -> RateSearch:
        return self._next_grid(_COARSE[-1])

    def _nearer(self) -> RateSearch:
        return replace(self._next_grid(_COARSE[-1] ** -2), shrunk=True)

    def _next_grid(self, factor: float) -> RateSearch:
        further = replace(self, alpha=self.alpha * factor, rounds=self.rounds + 1)
        return further.postponed()

    def _at(self, minimum: float, noise: Noise) -> RateSearch:
        """Return the search with its first minimum."""
        if noise.random:
            minimum = min(minimum, self.probe)
        return replace(self._with_alpha(minimum, noise), found=True).postponed(2)

    def _later_minimum(
        self, scales: Sequence[float], losses: Sequence[float], noise: Noise
    ) -> RateSearch:
        if self.mean is not None:
            return self._later_on_samples(self.mean, scales, losses, noise)
        model, minimum = self.model.minimum(scales, losses, self.alpha, noise.level)
        # As far down as up: what single searches get wrong has no drift.
        minimum = min(max(minimum, self.alpha / _CHANGE), _CHANGE * self.alpha)
        alpha = math.sqrt(self.alpha * minimum)
        hidden = self.hidden + model.hidden
        new = replace(self, model=model, hidden=hidden)._with_alpha(alpha, noise)
        return new._paused()

    def _later_on_samples(
        self, mean: MeanParabola, scales: Sequence[float], losses: Sequence[float], noise: Noise
    ) -> RateSearch:
        path = self.rate * max(1, self.steps - self.last_line)
        mean = mean.add(*Parabola().add(scales, losses).solve(), path)
        alpha = min(max(mean.minimum, self.alpha / _CHANGE), _CHANGE * self.alpha)
        new = replace(self, mean=mean, last_line=self.steps)._with_alpha(alpha, noise)
        return new._paused() if new.steady else new.postponed(2)

    def _paused(self) -> RateSearch:
        return self.postponed(1 + min(max(1, self.steps), self.interval))

    @property
    def steady(self) -> bool:
        """Whether alpha is what the lines ask for, or they ask for nothing in particular."""
        if self.mean is None or not self.mean.curvature > 0:
            return True
        return self.alpha / _STEADY <= self.mean.minimum <= _STEADY * self.alpha

    def _with_alpha(self, alpha: float, noise: Noise) -> RateSearch:
        pace = _PACE_ON_STEPS if noise.grain else 1.0
        return replace(self, alpha=alpha, rate=pace * alpha / self._age)

    @property
    def interval(self) -> int:
        """Steps from search to search, once the momentum is full."""
        memory = self.memory if self.mean is None else 0.0
        return max(1, round(max(memory, _BETWEEN / self.evaluations)))

    @property
    def _age(self) -> float:
        """Steps that the momentum averages by now."""
        beta = 1.0 - 1.0 / self.memory
        return (1.0 - beta ** max(1, self.steps)) * self.memory
