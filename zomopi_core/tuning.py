"""Learning rate and smoothing, measured: a line search for the one, the noise of F for the other.

**Noise.** With the first probes F is evaluated at seven points along one of them; `noise_level`
tells its noise s. The smoothing mu starts small and is raised until the differences of a step
stand three times above the noise; such steps estimate nothing and change nothing.

**Learning rate.** At some steps F is also evaluated at a few points along the direction of the
step before, and a parabola gives the minimiser alpha. With a momentum of memory T = 1/(1 - beta)
the rate is alpha / T: while the momentum keeps its direction, the steps together go as far as the
line search says. Nothing else decides how far to go, so the rate follows the problem from any
first guess, rises and falls with the distance that is left, and does not depend on the scale of F
or on a constant in it. Until the first minimum is found, on a grid of powers of four, nothing
moves, and the estimates at the start are averaged.

**Smoothing.** A third of the way to the line's minimum, as a length, is small against the radius
over which the gradient turns; mu is that, or more where the noise asks for it, and never less
than the floating-point format of the parameters can represent.

**Retreat.** If F has risen at the iterate by half of what it had fallen before, by several times
its usual change, and no point of the line search makes up for it, or if it fails there time after
time, the iterate goes back to the best one at which it was measured, and the rate falls.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from . import _arrays, errors
from .line_search import Parabola, is_clear, line_minimum
from .method import Method, leaves_of
from .momentum import ExponentialAverage
from .noise import noise_level
from .update import root_mean_square, typical_size

# Points of the first line, and their distance over the smoothing: near enough for F to be a
# polynomial between them, far enough for float32 parameters to tell them apart.
_NOISE_POINTS = 7
_NOISE_SPACING = 0.1
_MOST_TRIES = 3
# The smoothing at the start, its least value in units in the last place, and its largest, over
# the size of the parameters.
_START = 1e-3
_LEAST = 16.0
_TINY = 1e-18  # the least of all, where the parameters are zero
_MOST = 3.0
# Differences of a step over their noise that are aimed at, that are waited for at the start, and
# above which a noise that seven values showed is not doubted; how much mu grows at a time, and how
# often at most.
_ABOVE_NOISE = 1.5
_GOOD_ENOUGH = 3.0
_CERTAIN = 20.0
_GROWTH = 4.0
# Mean rise over the differences of a step above which mu is too large, and how much it falls.
_CURVED = 2.0
_CURVED_STEP = 8.0
# Noise of a function with steps, in steps: between two points it crosses many, up and down.
_STEPS = 6.0
_MOST_RAISES = 12
# The smoothing as a part of the way to the minimum along a line.
_PART_OF_WAY = 0.3
# The most of it that noise makes the smoothing: further out F is another function.
_MOST_OF_WAY = 8.0
_CHANGE = 4.0  # largest change of mu at a time
# Search for the first minimum: powers of four, two at a time, so that no point lies far beyond it.
_COARSE = (1.0, 4.0)
_MOST_ROUNDS = 16
# The longest step, as a part of the largest number of the parameters' dtype, and the longest
# whose sixth power, which a fit needs, float64 holds: an F without a minimum asks for any.
_LONGEST = 2.0**-10
_FITTED = 1e40
# Later searches: F at the iterate and around the minimum found last.
_FINE = (0.5, 1.0, 2.0)
# Where F is noisy: more of them, and as far out as it takes for the parabola to rise by several
# noise levels, within a factor.
_NOISY = (0.0, 0.0, 0.0, 0.5, 1.0, 1.5, 2.0)
_STEPPED = _NOISY[2:]  # such a function has the same value at the same point
_VISIBLE = 8.0
_FAR = 16.0
# Range of a search's values over the noise that is more than chance; the least minimiser, as a
# part of the distance searched.
_SEEN = 6.0
_LEAST_PART = 0.0625
# Line searches on a function with steps find its roughest directions, and the rate that they ask
# for is too small for the others: on `digits-accuracy` twice as much ended at half of the loss.
_PACE_ON_STEPS = 2.0
# A rise of F by this many usual changes is no accident.
_JUMP = 4.0
# Failures at the iterate, one step after the other, that say it has left the domain of F.
_LOST = 4
# At least so many evaluations lie between two searches; a search takes three to seven.
_BETWEEN = 80


# The memory of a fitted momentum in evaluations: the unknowns over a number, within bounds.
_UNKNOWNS = 24.0
_MEMORY = (32.0, 320.0)


class Plan(NamedTuple):
    """Points that a step needs beside its probes: along a probe, or along the last direction."""

    kind: str  # "", "noise" or "line"
    scales: tuple[float, ...] = ()


NOTHING = Plan("")


class Geometry(NamedTuple):
    """Lengths that the line search compares, Frobenius norms over all parameters."""

    probe: float  # of a probe for smoothing 1
    direction: float  # of the direction for rate 1


class Verdict(NamedTuple):
    """What becomes of a step."""

    usable: bool  # whether its losses make an estimate
    retreat: bool  # whether the iterate goes back to the best one
    best: bool  # whether the iterate is the best one


USABLE = Verdict(True, False, False)


@dataclass(frozen=True)
class Tuning:
    """The state of the tuning of a run; each of its methods returns a new one.

    Attributes
    ----------
    tunes_rate, tunes_smoothing : bool
    memory : float
        Steps over which the momentum averages.
    evaluations : int
        Evaluations of a step's probes.
    noise_gain : float
        Standard deviation of mu c for a loss with noise 1.
    smoothing, least_smoothing, most_smoothing : float
        mu now, and its bounds; these grow with the parameters.
    longest : float
        Frobenius norm that a step does not exceed.
    rate : float
        Learning rate of the next step; 0 until the first minimum was found.
    alpha : float
        Minimiser along the direction, or the start of the grid before there is one.
    noise : float
        Standard deviation of a loss.
    """

    tunes_rate: bool
    tunes_smoothing: bool
    memory: float
    evaluations: int
    noise_gain: float
    smoothing: float
    least_smoothing: float
    most_smoothing: float
    longest: float = math.inf
    rate: float = 0.0
    alpha: float = 0.0
    noise: float = 0.0
    grain: float = 0.0  # what a function with steps adds to the noise of its differences
    random: bool = False  # whether F gives another value at the same point
    measured: bool = False  # the noise
    tries: int = 0  # to measure it, where evaluations failed
    raises: int = 0  # of the smoothing, before it was settled
    steepest: float = 0.0  # slope seen meanwhile
    spread: float = 0.0  # differences of the losses at the last raise
    settled: bool = False  # the smoothing
    rounds: int = 0  # of the first search
    shrunk: bool = False  # whether it began too far out
    found: bool = False  # the first minimum
    steps: int = 0  # that made an estimate
    next_search: int = 1
    failures: int = 0  # of F at the iterate in a row, with most probes
    first: float = math.nan  # F at the start
    lowest: float = math.inf  # F at the best iterate measured
    last: float = math.nan  # F at the last search
    usual: float = 0.0  # change of it from search to search
    parabola: Parabola = field(default_factory=Parabola)  # of the noisy searches
    begun: float = 0.0  # the first smoothing
    reach: float = 0.0  # at which a rough function was last searched
    probe: float = math.inf  # length of a probe, in units of the direction's

    @property
    def plan(self) -> Plan:
        """The points that the next step needs beside its probes."""
        if not self.measured:
            return Plan("noise", tuple(_NOISE_SPACING * i for i in range(_NOISE_POINTS)))
        if not self.tunes_rate or not self.settled or not self.alpha > 0:
            return NOTHING
        if self.steps < self.next_search:
            return NOTHING
        if not self.found:
            return Plan("line", (0.0, *(self.alpha * s for s in _COARSE)))
        if self.random:
            return Plan("line", tuple(self._reach * s for s in _NOISY))
        if self.grain:
            return Plan("line", tuple(self._reach * s for s in _STEPPED))
        return Plan("line", (0.0, *(self.alpha * s for s in _FINE)))

    @property
    def _reach(self) -> float:
        """Step around which a noisy function is searched: its curvature can be seen there."""
        curvature = self.parabola.solve()[1]
        if not curvature > 0:
            return max(self.alpha, self.reach)
        visible = math.sqrt(_VISIBLE * self.noise / curvature)
        return min(max(self.alpha, visible), _FAR * self.alpha)

    @property
    def _rough(self) -> bool:
        """Whether small differences of F say nothing."""
        return self.random or self.grain > 0

    @property
    def attentive(self) -> bool:
        """Whether the losses of the next step must be known on the host."""
        if not self.measured or not self.settled or self.plan.kind:
            return True
        # without a line search the smoothing follows the noise at the same pace
        return self.tunes_smoothing and self.steps >= self.next_search

    def without_noise(self) -> Tuning:
        """Return the tuning for a run too short to measure the noise."""
        return replace(self, measured=True, settled=True)

    def grown(self, method: Method, params: Any) -> Tuning:
        """Return the tuning with bounds of the smoothing that follow parameters as they grow.

        Else a probe would be lost in the rounding of what has moved far from where it began.
        """
        _, least, most = _sizes(method, params)
        return replace(
            self,
            least_smoothing=max(least, self.least_smoothing),
            most_smoothing=max(most, self.most_smoothing),
        )

    def postponed(self) -> Tuning:
        """Return the tuning with the next line search a step later."""
        if not self.measured:
            return self.without_noise()
        return replace(self, next_search=self.steps + 1)

    def passed(self) -> Tuning:
        """Return the tuning after a step at which it looked at nothing."""
        return replace(self, steps=self.steps + 1)

    def told(
        self,
        coefficients: Sequence[float],
        losses: Sequence[float],
        extra: Sequence[float],
        geometry: Geometry,
    ) -> tuple[Tuning, Verdict]:
        """Return the tuning after a step, and what becomes of the step.

        Parameters
        ----------
        coefficients : sequence of float
            c of the step's probes, NaN where an evaluation failed.
        losses : sequence of float
            Of the step's probes.
        extra : sequence of float
            Losses at the points of `plan`.
        geometry : Geometry
            Lengths of the direction along which `plan` asked.
        """
        plan, new = self.plan, self
        retreat = best = False
        if plan.kind == "noise":
            new = new._with_noise(extra)
        slope = _root_mean_square(coefficients)
        if not new.random:
            new = new._with_steps([*losses, *extra] if plan.kind == "noise" else losses)
        if not new.measured:
            return new, Verdict(False, False, False)
        if not new.settled:
            new = new._settle(slope, losses)
            if not new.settled:
                return new, Verdict(False, False, False)
        if plan.kind == "line":
            failed = sum(not math.isfinite(x) for x in losses)
            told = list(zip(plan.scales, extra, strict=True))
            if failed:
                # Where probes fail too, a failure along the line does not mean "too far".
                told = [(s, x) for s, x in told if math.isfinite(x)]
            lost = 2 * failed >= len(losses)
            scales, values = [s for s, _ in told], [x for _, x in told]
            if geometry.direction > 0:
                probe = self.smoothing * geometry.probe / geometry.direction
                new = replace(new, probe=probe)
            new, retreat, best = new._searched(scales, values, lost)
            new = new._shortened(geometry)
        if self.settled and self.attentive:
            new = new._smoothed(slope, geometry)
        if slope > 0 or retreat:
            new = replace(new, steps=self.steps + 1)
        return new, Verdict(True, retreat, best)

    def _shortened(self, geometry: Geometry) -> Tuning:
        """Return the tuning with a step that the parameters' dtype can hold."""
        part = self.longest / geometry.direction if geometry.direction > 0 else math.inf
        if self.alpha <= part:
            return self
        return replace(self, alpha=part, rate=min(self.rate, part))

    def _with_noise(self, extra: Sequence[float]) -> Tuning:
        noise = noise_level(extra) or 0.0
        tries = self.tries + 1
        return replace(
            self,
            measured=tries == _MOST_TRIES or all(map(math.isfinite, extra)),
            tries=tries,
            noise=noise,
            random=noise > 0,
            settled=not self.tunes_smoothing,
            first=extra[0],
            lowest=extra[0] if math.isfinite(extra[0]) else math.inf,
        )

    def _with_steps(self, losses: Sequence[float]) -> Tuning:
        """Return the tuning with the height of the steps of F, where values repeat."""
        counts = Counter(x for x in losses if math.isfinite(x))
        repeated = sum(n > 1 for n in counts.values())
        # One value alone may be a penalty or a limit of F.
        if repeated < 2 and 2 * len(counts) > counts.total():
            return self
        step = min((b - a for a, b in itertools.pairwise(sorted(counts))), default=0.0)
        return replace(self, noise=max(self.noise, step), grain=max(self.grain, _STEPS * step))

    def _settle(self, slope: float, losses: Sequence[float]) -> Tuning:
        """Return the tuning with more smoothing, or settled if there is enough of it."""
        finite = [x for x in losses if math.isfinite(x)]
        new, spread = self, slope * self.smoothing
        enough = 2 * len(set(finite)) > len(finite)
        enough = enough and spread >= _GOOD_ENOUGH * self.noise_gain * max(new.noise, new.grain)
        if enough and spread < _CERTAIN * self.noise_gain * self.noise:
            # Seven values may have shown too little of the noise; then the differences do not
            # grow with the smoothing.
            enough = 0.0 < self.spread < 0.5 * spread
        excess = sum(finite) / len(finite) - self.first if finite else 0.0
        if enough and self.raises == 0 and excess > _CURVED * spread > 10.0 * new.noise:
            # Curvature, and not slope, makes the differences: parameters of a smaller scale.
            smoothing = max(self.smoothing / _CURVED_STEP, self.least_smoothing)
            if smoothing < self.smoothing:
                return replace(new, smoothing=smoothing, begun=smoothing)
        if enough or self.raises == _MOST_RAISES or self.smoothing >= self.most_smoothing:
            return replace(new, settled=True)
        if slope < 0.5 * self.steepest and spread > _GOOD_ENOUGH * self.noise_gain * new.noise:
            # Too far for F to go on as it began: the smoothing before was the best there is.
            return replace(new, settled=True, smoothing=self.smoothing / _GROWTH)
        growth = _GROWTH if spread > 0 else _GROWTH**2
        smoothing = min(self.smoothing * growth, self.most_smoothing)
        steepest = max(slope, self.steepest)
        if self.random:
            # What was seen is noise for the most part; seven values may have shown too little.
            seen = spread / self.noise_gain
            new = replace(new, noise=max(new.noise, math.sqrt(new.noise) * math.sqrt(seen)))
        return replace(
            new, spread=spread, smoothing=smoothing, steepest=steepest, raises=self.raises + 1
        )

    def _searched(
        self, scales: Sequence[float], losses: Sequence[float], lost: bool
    ) -> tuple[Tuning, bool, bool]:
        """Return the tuning after a line search, whether to retreat, whether this is the best."""
        here = [x for s, x in zip(scales, losses, strict=True) if s == 0]
        finite = [x for x in here if math.isfinite(x)]
        if not finite:
            # Some failures are bad luck, and the next step searches again; where most probes
            # fail too, time after time, the iterate has left the domain of F.
            failures = self.failures + 1 if lost else 0
            if failures >= _LOST and self.found:
                return replace(self._retreated(), failures=0), True, False
            return replace(self, failures=failures, next_search=self.steps + 1), False, False
        value = sum(finite) / len(finite)
        new = replace(self, failures=0)._seen(value)
        if len(finite) > 1:
            # hypot, as squares of losses may overflow
            gap = math.sqrt(0.05) * (finite[0] - finite[1])
            noise = math.hypot(math.sqrt(0.9) * self.noise, gap)
            # Noise of rounding is the same each time: it is not seen in a repetition.
            same = finite[0] == finite[1]
            new = replace(new, noise=self.noise if same else noise, random=not same)
        if not self.found:
            new = new._coarse(scales, losses)
            return replace(new, lowest=min(value, new.lowest)), False, True
        margin = 6.0 * self.noise
        fallen = max(self.first - self.lowest, 0.0) if math.isfinite(self.first) else 0.0
        least = min(filter(math.isfinite, losses), default=math.inf)
        if (
            not value - max(0.5 * fallen, value - least, _JUMP * self.usual)
            <= self.lowest + margin
        ):
            return new._retreated(), True, False
        if len(set(scales)) < 3:
            return replace(new, next_search=self.steps + 1), False, False
        new, minimum = new._minimum(scales, losses)
        alpha = math.sqrt(self.alpha * minimum)
        pause = min(max(1, self.steps), self._interval)
        new = replace(
            new,
            alpha=alpha,
            rate=self._pace * alpha / self._age,
            next_search=self.steps + 1 + pause,
            lowest=min(value, self.lowest),
        )
        return new, False, value <= self.lowest + margin

    def _seen(self, value: float) -> Tuning:
        """Return the tuning with the usual change of F at the iterate from search to search.

        It holds what batches of data, drawn anew at each step, do to F.
        """
        change = abs(value - self.last) if math.isfinite(self.last) else 0.0
        usual = max(change, self.usual) if not self.found else 0.5 * (change + self.usual)
        return replace(self, last=value, usual=usual)

    def _retreated(self) -> Tuning:
        return replace(
            self, alpha=self.alpha / 4.0, rate=self.rate / 4.0, next_search=self.steps + 2
        )

    def _minimum(self, scales: Sequence[float], losses: Sequence[float]) -> tuple[Tuning, float]:
        """Return the tuning after a later search, and the minimiser."""
        if is_clear(losses, self.noise):
            parabola, minimum = Parabola().add(scales, losses), line_minimum(scales, losses)
            new = replace(self, parabola=parabola, reach=0.5 * self._reach)
        else:
            new, minimum = self._fitted(scales, losses)
        # As far down as up: what single searches get wrong has no drift.
        return new, min(max(minimum, self.alpha / 4.0), 4.0 * self.alpha)

    def _fitted(self, scales: Sequence[float], losses: Sequence[float]) -> tuple[Tuning, float]:
        """Return the tuning and the minimiser of a parabola through this and earlier searches."""
        reach = self._reach
        # Far out F is another function, and a fit is led by its farthest points.
        nearer = min(1.0, reach / self.reach) if self.reach > 0 else 1.0
        parabola = self.parabola.add(scales, losses, nearer**4)
        slope, curvature = parabola.solve()
        if curvature > 0:
            minimum = slope / curvature
        else:
            minimum = math.inf if slope > 0 else 0.0
            finite = [x for x in losses if math.isfinite(x)]
            seen = max(finite) - min(finite) > _SEEN * self.noise
            reach *= 0.5 if seen else 2.0
        # A shorter step than this could not be told from it. Else a few searches that went wrong
        # by chance make all points of the next ones coincide, and nothing is ever seen again.
        minimum = max(minimum, _LEAST_PART * self._reach)
        return replace(self, parabola=parabola, reach=reach), minimum

    @property
    def _interval(self) -> int:
        return max(1, round(max(self.memory, _BETWEEN / self.evaluations)))

    @property
    def _pace(self) -> float:
        return _PACE_ON_STEPS if self.grain else 1.0

    @property
    def _age(self) -> float:
        """Steps that the momentum averages by now."""
        beta = 1.0 - 1.0 / self.memory
        return (1.0 - beta ** max(1, self.steps)) * self.memory

    def _coarse(self, scales: Sequence[float], losses: Sequence[float]) -> Tuning:
        """Return the tuning after a round of the first search."""
        rounds = self.rounds + 1
        tried = [(s, x) for s, x in zip(scales, losses, strict=True) if math.isfinite(x)]
        base, ahead = tried[0][1], [(s, x) for s, x in tried if s > 0]
        tolerance = 2.0 * math.sqrt(2.0) * self.noise
        if len(scales) < 3:
            return replace(self, next_search=self.steps + 1)  # nothing to tell from
        if not ahead:
            return self._elsewhere(_COARSE[-1] ** -2, shrunk=True)
        lowest = min(x for _, x in ahead)
        risen = ahead[-1][1] > lowest + tolerance or not math.isfinite(losses[-1])
        if lowest < base - tolerance:
            minimum = line_minimum(scales, losses)
            if risen or rounds == _MOST_ROUNDS or minimum < ahead[-1][0]:
                return self._found(minimum)
            return self._elsewhere(_COARSE[-1])
        hidden = [s for s, x in ahead if x <= base + tolerance]
        if hidden and self._rough and ahead[-1][0] >= self.probe:
            # As far as a probe a direction that is any good shows. What is seen further out says
            # nothing of the slope here.
            return self._found(self.probe)
        if hidden and (risen or self.shrunk or rounds == _MOST_ROUNDS):
            return self._found(hidden[-1])  # the minimum lies below the noise
        if hidden:
            return self._elsewhere(_COARSE[-1])
        if rounds == _MOST_ROUNDS:
            return self._found(scales[1] / 8.0)
        return self._elsewhere(_COARSE[-1] ** -2, shrunk=True)

    def _elsewhere(self, factor: float, *, shrunk: bool = False) -> Tuning:
        """Return the tuning with the next grid of the first search."""
        return replace(
            self,
            alpha=self.alpha * factor,
            rounds=self.rounds + 1,
            shrunk=self.shrunk or shrunk,
            next_search=self.steps + 1,
        )

    def _found(self, alpha: float) -> Tuning:
        return replace(
            self,
            found=True,
            alpha=alpha,
            rate=self._pace * alpha / self._age,
            next_search=self.steps + 2,
        )

    def started(self, geometry: Geometry) -> Tuning:
        """Return the tuning with the first step of the search, from the size of a probe."""
        if not self.settled or not geometry.direction > 0 or not geometry.probe > 0:
            return self
        # As far as a probe, where noise hides what is nearer, else a tenth of it.
        part = 1.0 if self.raises else 0.1
        return replace(self, alpha=part * self.smoothing * geometry.probe / geometry.direction)

    def _smoothed(self, slope: float, geometry: Geometry) -> Tuning:
        """Return the tuning with the smoothing for the next steps."""
        if not self.tunes_smoothing:
            return self
        wanted = self.least_smoothing
        if self.found:
            wanted = _PART_OF_WAY * self.alpha * geometry.direction / geometry.probe
        elif self.tunes_rate:
            return self
        else:
            # From a smaller step the noise itself would look like a slope.
            wanted = self.begun
        if slope > 0:
            noise = self.noise_gain * max(self.noise, self.grain)
            most = _MOST_OF_WAY * wanted / _PART_OF_WAY if self.found else math.inf
            wanted = max(wanted, min(most, _ABOVE_NOISE * noise / slope))
        wanted = math.sqrt(self.smoothing * wanted)  # the slope of one step is uncertain
        wanted = min(max(wanted, self.smoothing / _CHANGE), self.smoothing * _CHANGE)
        wanted = min(max(wanted, self.least_smoothing), self.most_smoothing)
        new = replace(self, smoothing=wanted)
        if not self.tunes_rate:
            new = replace(new, next_search=self.steps + self._interval)
        return new


def fit_memory(method: Method, params: Any) -> Method:
    """Return the method with a momentum whose memory suits the number of its unknowns.

    A longer memory shows more of the spectrum, and turns more slowly: on the problems of
    `zomopi_core.problems` with 64 to 4,096 unknowns, one evaluation for 24 unknowns was best.
    """
    momentum = method.matrices.momentum
    if not isinstance(momentum, ExponentialAverage) or not momentum.fitted:
        return method
    shapes = [method.rule(x.ndim).subspace.coordinate_shape(x.shape) for x in leaves_of(params)]
    unknowns = sum(math.prod(shape) for shape in shapes)
    shortest, longest = _MEMORY
    evaluations = min(max(unknowns / _UNKNOWNS, shortest), longest)
    beta = max(0.0, 1.0 - method.evaluations_per_step / evaluations)
    momentum = replace(momentum, beta=beta, fitted=False)
    return replace(
        method,
        matrices=replace(method.matrices, momentum=momentum),
        vectors=replace(method.vectors, momentum=momentum),
    )


def start_tuning(method: Method, params: Any) -> Tuning | None:
    """Return the tuning of a run from `params`, None if there is nothing to tune."""
    if method.estimator is None:
        for rule in (method.matrices, method.vectors):
            if rule.update.tuned:
                raise errors.needs_learning_rate(rule.update.name)
        return None
    rules = [(method.rule(x.ndim), x) for x in leaves_of(params)]
    tunes_rate = any(rule.update.tuned for rule, _ in rules)
    estimator = method.estimator
    if not tunes_rate and not estimator.tuned:
        return None
    smallest, least, most = _sizes(method, params)
    start = max(_START * smallest, least) if estimator.tuned else estimator.width
    return Tuning(
        tunes_rate=tunes_rate,
        tunes_smoothing=estimator.tuned,
        memory=max(rule.momentum.memory for rule, _ in rules),
        evaluations=len(estimator.evaluations),
        noise_gain=estimator.noise_gain,
        smoothing=start,
        begun=start,
        least_smoothing=least,
        most_smoothing=most,
        longest=min(_FITTED, *(_LONGEST * _arrays.largest_number(x) for _, x in rules)),
    )


def _sizes(method: Method, params: Any) -> tuple[float, float, float]:
    """Return the smallest of the parameters' sizes, and the bounds of the smoothing."""
    sizes = [
        (float(typical_size(x, method.rule(x.ndim).subspace.columns(x.shape))), x)
        for x in leaves_of(params)
    ]
    least = max(_LEAST * _arrays.epsilon(x) * float(root_mean_square(x)) for _, x in sizes)
    least = max(least, _TINY * min(size for size, _ in sizes))
    return min(size for size, _ in sizes), least, _MOST * max(size for size, _ in sizes)


def _root_mean_square(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    largest = max(map(abs, finite), default=0.0)
    if not largest > 0:
        return 0.0
    return largest * math.sqrt(sum((v / largest) ** 2 for v in finite) / len(finite))
