"""Learning rate and smoothing, measured during a run.

Five parts, each a state that nothing changes, know one thing each: `Noise` how well differences of
F can be seen, `Smoothing` how long probes should be, `RateSearch` how far steps should go,
`Balance` how far those of one array beside those of another, and `Descent` whether F falls.
`Tuning` hands them what a step has shown.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from . import _arrays, errors
from .balance import Balance, balance_of
from .estimator import FiniteDifference
from .look import Geometry, Size
from .method import Method
from .momentum import ExponentialAverage, Momentum
from .noise import LINE_POINTS, Noise
from .rate_search import RateSearch
from .retreat import Descent
from .rule import Leaves
from .smoothing import Smoothing, start_smoothing

# The longest step, as a part of the largest number of the parameters' dtype, and the longest
# whose sixth power, which a fit needs, float64 holds: an F without a minimum asks for any.
_LONGEST = 2.0**-10
_FITTED = 1e40
# The memory of a fitted momentum in evaluations: the unknowns over a number, within bounds.
_UNKNOWNS = 24.0
_MEMORY = (32.0, 320.0)


class Plan(NamedTuple):
    """Points that a step needs beside its probes: along a probe, or along the last direction."""

    kind: str  # "", "noise" or "line"
    scales: tuple[float, ...] = ()
    group: int | None = None  # of arrays along whose part of the direction, if not along all of it


NOTHING = Plan("")


class Verdict(NamedTuple):
    """What becomes of a step."""

    usable: bool  # whether its losses make an estimate
    retreat: bool  # whether the iterate goes back to the best one
    best: bool  # whether the iterate is the best one
    weight: float = 1.0  # of the iterate in the average of the best ones


USABLE = Verdict(True, False, False)
_UNUSABLE = Verdict(False, False, False)
_RETREAT = Verdict(True, True, False)


class _Line(NamedTuple):
    """What a step has shown along the last direction."""

    scales: list[float]
    losses: list[float]
    lost: bool  # whether most probes failed

    @property
    def here(self) -> list[float]:
        """The finite values at the iterate."""
        pairs = zip(self.scales, self.losses, strict=True)
        return [x for s, x in pairs if s == 0 and math.isfinite(x)]

    @property
    def lowest(self) -> float:
        return min(filter(math.isfinite, self.losses), default=math.inf)


@dataclass(frozen=True)
class Tuning:
    """The state of the tuning of a run; each of its methods returns a new one.

    Attributes
    ----------
    noise : Noise
    smoothing : Smoothing
    search : RateSearch
    descent : Descent
    balance : Balance
    """

    noise: Noise
    smoothing: Smoothing
    search: RateSearch
    descent: Descent = field(default_factory=Descent)
    balance: Balance = field(default_factory=Balance)

    @property
    def rate(self) -> float:
        """Learning rate of the next step; 0.0 until the first minimum was found."""
        return self.search.rate

    @property
    def weight(self) -> float:
        """Weight of the iterate in the average of the best ones; 1.0 where it is best alone."""
        return self.search.weight if self.noise.random and not self.noise.grain else 1.0

    @property
    def averages(self) -> bool:
        """Whether noise has hidden a minimum, so that iterates are averaged."""
        search = self.search
        hidden = search.hidden > 0 and search.mean is None
        return hidden and self.noise.random and not self.noise.grain

    @property
    def plan(self) -> Plan:
        """The points that the next step needs beside its probes."""
        if not self.noise.measured:
            return Plan("noise", LINE_POINTS)
        if not self.smoothing.settled:
            return NOTHING
        search, balance = self.search, self.balance
        if scales := search.scales(self.noise):
            return Plan("line", scales)
        # Where F has steps, lines find the roughest directions, also of a group.
        ready = search.found and search.steady and not self.noise.grain
        if ready and balance.due(search.steps):
            distance = balance.distance(search.alpha, self.noise)
            return Plan("line", search.around(distance), balance.turn)
        return NOTHING

    @property
    def attentive(self) -> bool:
        """Whether the losses of the next step must be known on the host."""
        if not self.noise.measured or not self.smoothing.settled or self.plan.kind:
            return True
        # without a line search the smoothing follows the noise at the same pace
        return self.smoothing.tuned and self.search.due

    def without_noise(self) -> Tuning:
        """Return the tuning for a run too short to measure the noise."""
        return replace(
            self,
            noise=replace(self.noise, measured=True),
            smoothing=replace(self.smoothing, settled=True),
        )

    def on_samples(self) -> Tuning:
        """Return the tuning for a run in which each step may see another sample of data."""
        return replace(self, descent=replace(self.descent, expected=True))

    def grown(self, sizes: Sequence[Size]) -> Tuning:
        """Return the tuning with bounds of the smoothing that follow parameters as they grow."""
        balance = self.balance.grown(len(sizes))
        return replace(self, smoothing=self.smoothing.grown(sizes), balance=balance)

    def postponed(self) -> Tuning:
        """Return the tuning with the next line search a step later."""
        if not self.noise.measured:
            return self.without_noise()
        search, balance = self.search, self.balance
        if balance.due(search.steps):
            balance = balance.postponed(search.steps + 1)
        return replace(self, search=search.postponed() if search.due else search, balance=balance)

    def passed(self) -> Tuning:
        """Return the tuning after a step at which it looked at nothing."""
        return replace(self, search=self.search.passed())

    @property
    def can_begin(self) -> bool:
        """Whether the line search waits for a first direction."""
        return self.search.tuned and not self.search.begun and self.smoothing.settled

    def begin(self, geometry: Geometry) -> Tuning:
        """Return the tuning with the first guess of the line search, for a first direction."""
        return replace(self, search=self.search.begin(self.smoothing, geometry))

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
        plan, slope = self.plan, _root_mean_square(coefficients)
        new = self._with_noise(losses, extra if plan.kind == "noise" else ())
        if not all(map(math.isfinite, (*losses, *extra))):
            new = replace(new, descent=replace(new.descent, has_failed=True))
        if new.noise.measured and not new.smoothing.settled:
            new = new._settle(slope, losses)
        if not new.noise.measured or not new.smoothing.settled:
            return new, _UNUSABLE
        verdict = USABLE
        if plan.kind == "line":
            new, verdict = new._searched(_line(plan.scales, extra, losses), geometry, plan.group)
        looks = self.smoothing.settled and self.attentive and plan.group is None
        if looks and any(map(math.isfinite, coefficients)):
            new = new._smoothed(slope, geometry)
        return (new.passed() if slope > 0 or verdict.retreat else new), verdict

    def _with_noise(self, losses: Sequence[float], line: Sequence[float]) -> Tuning:
        """Return the tuning with what the values themselves tell."""
        level, descent = self.noise, self.descent
        if line:
            level, descent = level.with_line(line), descent.from_start(line[0])
        if not level.random:
            level = level.with_steps([*losses, *line])
        return replace(self, noise=level, descent=descent)

    def _settle(self, slope: float, losses: Sequence[float]) -> Tuning:
        """Return the tuning with more smoothing, or settled if there is enough of it."""
        level = self.noise
        smoothing = self.smoothing.settle(level, slope, losses, self.descent.first)
        if smoothing.raises > self.smoothing.raises:
            # What was seen is noise for the most part.
            level = level.with_bound(smoothing.spread / smoothing.gain)
        return replace(self, noise=level, smoothing=smoothing)

    def _searched(
        self, line: _Line, geometry: Geometry, group: int | None
    ) -> tuple[Tuning, Verdict]:
        """Return the tuning after a line search, and what becomes of the step."""
        search, balance = self.search.with_probe(self.smoothing, geometry), self.balance
        if group is not None:
            balance = balance.postponed(search.steps + search.interval)  # should this one fail
        new, verdict = replace(self, search=search, balance=balance)._judged(line, group)
        return replace(new, search=new.search.shortened(geometry)), verdict

    def _judged(self, line: _Line, group: int | None) -> tuple[Tuning, Verdict]:
        if not line.here:
            return self._failed(line.lost)
        value, search = sum(line.here) / len(line.here), self.search
        risen = search.found and self.descent.has_risen(value, line.lowest, self.noise)
        best = not search.found or self.descent.is_best(value, self.noise)
        level, descent = self.noise, self.descent.seen(value, self.noise, moves=search.found)
        if len(line.here) > 1:
            level = level.with_repetition(*line.here[:2])
        new = replace(self, noise=level, descent=descent)
        if risen:
            return replace(new, search=search.retreated()), _RETREAT
        can_tell = search.can_tell(line.scales)
        if group is None:
            # Steps of F hide what samples differ by.
            sampled = descent.sampled and not level.grain
            told = search.told(line.scales, line.losses, level, sampled=sampled)
            new = replace(new, search=told)
        elif can_tell:
            balance = self.balance.told(
                line.scales, line.losses, search.alpha, level, sampled=descent.sampled
            )
            balance = balance.next_after(search.steps, search.interval)
            new = replace(new, balance=balance)
        if search.found and not can_tell:
            return new, USABLE
        return replace(new, descent=descent.lowered(value)), Verdict(True, False, best, new.weight)

    def _failed(self, lost: bool) -> tuple[Tuning, Verdict]:
        """Return the tuning after a line at whose iterate F failed."""
        descent = self.descent.failed(lost=lost)
        if descent.lost and self.search.found:
            descent = replace(descent, failures=0)
            return replace(self, search=self.search.retreated(), descent=descent), _RETREAT
        # The next step searches again.
        return replace(self, search=self.search.postponed(), descent=descent), USABLE

    def _smoothed(self, slope: float, geometry: Geometry) -> Tuning:
        """Return the tuning with the smoothing for the next steps."""
        smoothing, search = self.smoothing, self.search
        if not smoothing.tuned:
            return self
        if search.found:
            smoothing = smoothing.toward_minimum(self.noise, slope, search.alpha, geometry)
        elif not search.tuned:
            smoothing = smoothing.above_noise(self.noise, slope)
        if not search.tuned:
            search = search.rested()
        return replace(self, smoothing=smoothing, search=search)


def _line(scales: Sequence[float], values: Sequence[float], losses: Sequence[float]) -> _Line:
    """Return what a step has shown along the last direction, `losses` those of its probes."""
    failed = sum(not math.isfinite(x) for x in losses)
    pairs = list(zip(scales, values, strict=True))
    if failed:
        # Where probes fail too, a failure along the line does not mean "too far".
        pairs = [(s, x) for s, x in pairs if math.isfinite(x)]
    return _Line([s for s, _ in pairs], [x for _, x in pairs], 2 * failed >= len(losses))


def fit_memory(method: Method, params: Any) -> Method:
    """Return the method with a momentum whose memory suits the number of its unknowns."""
    before, per_step = method.matrices.momentum, method.evaluations_per_step
    momentum = fitted_average(before, count_unknowns(method.rules_of(params)), per_step)
    if momentum is before:
        return method
    return replace(
        method,
        matrices=replace(method.matrices, momentum=momentum),
        vectors=replace(method.vectors, momentum=momentum),
    )


def count_unknowns(leaves: Leaves) -> int:
    """Return the number of coordinates of all leaves together."""
    return sum(math.prod(rule.subspace.coordinate_shape(x.shape)) for rule, x in leaves)


def fitted_average(momentum: Momentum, unknowns: int, per_step: int) -> Momentum:
    """Return a momentum with the memory for so many unknowns, if it may be chosen.

    A longer memory shows more of the spectrum, and turns more slowly: on the problems of
    `zomopi_core.problems` with 64 to 4,096 unknowns, one evaluation for 24 unknowns was best.
    """
    if not isinstance(momentum, ExponentialAverage) or not momentum.fitted:
        return momentum
    shortest, longest = _MEMORY
    evaluations = min(max(unknowns / _UNKNOWNS, shortest), longest)
    beta = max(0.0, 1.0 - per_step / evaluations)
    return replace(momentum, beta=beta, fitted=False)


def start_tuning(method: Method, params: Any) -> Tuning | None:
    """Return the tuning of a run from `params`, None if there is nothing to tune."""
    if method.estimator is None:
        for rule in (method.matrices, method.vectors):
            if rule.update.tuned:
                raise errors.needs_learning_rate(rule.update.name)
        return None
    return tuning_of(method.estimator, method.rules_of(params))


def tuning_of(estimator: FiniteDifference, leaves: Leaves) -> Tuning | None:
    """Return the tuning of a run from these leaves, None if there is nothing to tune."""
    tunes_rate = any(rule.update.tuned for rule, _ in leaves)
    if not tunes_rate and not estimator.tuned:
        return None
    search = RateSearch(
        tuned=tunes_rate,
        memory=max(rule.momentum.memory for rule, _ in leaves),
        evaluations=len(estimator.evaluations),
        longest=min(_FITTED, *(_LONGEST * _arrays.largest_number(x) for _, x in leaves)),
    )
    smoothing = start_smoothing(estimator, leaves)
    return Tuning(Noise(), smoothing, search, balance=balance_of(leaves))


def _root_mean_square(values: Sequence[float]) -> float:
    finite = [v for v in values if math.isfinite(v)]
    largest = max(map(abs, finite), default=0.0)
    if not largest > 0:
        return 0.0
    return largest * math.sqrt(sum((v / largest) ** 2 for v in finite) / len(finite))
