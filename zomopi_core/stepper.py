"""From one point to the next: what a method asks for at a point, and the step from the answer."""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

from . import _arrays, errors
from ._arrays import Array
from .balance import rescaled
from .best import Best
from .binding import ArrayBinding
from .candidates import Candidates
from .constraints import Projection
from .estimator import FiniteDifference
from .look import Length, length, look, sizes_of
from .method import Method, State, leaves_of, like_params
from .objective import check_gradient, invisible_fraction
from .point import Point, Snapshot
from .rule import Probe
from .tuning import NOTHING, USABLE, Plan, Tuning, Verdict
from .update import Change


class Asked(NamedTuple):
    """The points at which losses are needed, and for which step: answered when that is taken."""

    step: int
    points: Candidates
    probes: tuple[Probe, ...]
    method: Method
    estimator: FiniteDifference
    plan: Plan


class Heard(NamedTuple):
    """What the losses of a step say."""

    coefficients: Array
    tuning: Tuning | None
    verdict: Verdict


class Stepper:
    """Takes the steps of a method on arrays; whoever drives it remembers where it is.

    A step from losses has three parts: `hear` what they say, `remember` the iterate if it is the
    best one, `step`. `Point.best` is the best iterate that a line search has measured, and from
    the first search on whose minimum noise has hidden, their average. Where it is None to begin
    with, whoever drives remembers the best point seen. It then stays None until there is an
    average, or until F fails somewhere: the best point seen may lie at the edge of its domain,
    and most probes around it beyond.

    Parameters
    ----------
    method : Method
    binding : ArrayBinding
        The memory of points and iterates.
    project : callable or None
        Applied to each iterate.
    start : Point
        Any point of the run: kinds and units of the parameters are taken from it.
    """

    def __init__(
        self, method: Method, binding: ArrayBinding, project: Projection | None, start: Point
    ) -> None:
        self.method, self.binding, self.project = method, binding, project
        arrays = leaves_of(start.params)
        first = next((i for i, x in enumerate(arrays) if x.ndim >= 2), 0)
        unit = start.state.leaves[first].unit
        self._unit = 1.0 if unit is None else float(unit)
        self._first = first
        self._first_kind = 0 if arrays[first].ndim >= 2 else 1
        self._constant = start.tuning is None and method.snapshots is None
        for x in arrays:
            self._constant &= method.rule(x.ndim).update.constant
        self._draws = method.draws_in_update
        self._like = start.state.started
        self._may_be_traced = not self._draws or start.state.random.can_be_traced
        #: whether iterates are left to be taken back; with a projection they may belong to that
        self.releases = binding.reuse_buffers and project is None
        self.forget_rates()
        self._compile()

    def _compile(self) -> None:
        # The rates are given, so that runs of different length share what was compiled.
        method = self.method.with_horizon(None)
        at_snapshot = method if method.snapshots is None else method.snapshots.method
        functions: list[Any] = [method.advance, at_snapshot.advance, method.descend]
        made = [_arrays.compiled(f, self._like) for f in functions]
        self._traced = self._may_be_traced and made[0] is not functions[0]
        chosen = made if self._traced else functions
        self.advance, self._advance_at_snapshot, self._descend = chosen

    def __getstate__(self) -> dict[str, Any]:
        compiled = {"advance", "_advance_at_snapshot", "_descend"}
        return {k: v for k, v in self.__dict__.items() if k not in compiled}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._compile()

    def forget_rates(self) -> None:
        """Compute the rates of the next step again, whatever it is."""
        self._cached_rates: tuple[int, tuple[tuple[Any, Any], float]] = -1, ((0.0, 0.0), 0.0)

    def rates(self, point: Point) -> tuple[tuple[Any, Any], float]:
        """Return the rates of the next step, and the learning rate of the first matrix.

        They are computed here, where a schedule may be any function, and once a step.
        """
        step, factor = point.state.step, point.rate_factor
        known, found = self._cached_rates
        if known == step or (self._constant and known >= 0 and factor == 1.0):
            return found
        method, tuning = self.method_at(point), point.tuning
        rates = method.rates(step)
        if tuning is not None:
            rules = method.matrices, method.vectors
            pairs = zip(rules, rates, strict=True)
            tuned = [tuning.rate if r.update.tuned else given for r, given in pairs]
            rates = (tuned[0], tuned[1])
        if factor != 1.0:
            rates = (factor * rates[0], factor * rates[1])
        share = 1.0 if tuning is None else tuning.balance.factors[self._first]
        found = rates, float(rates[self._first_kind]) * self._unit * share
        self._cached_rates = step, found
        return found

    def method_at(self, point: Point) -> Method:
        """Return the method of the next step: another one where a snapshot is due."""
        snapshots = self.method.snapshots
        if snapshots is None:
            return self.method
        last = point.snapshot
        due = last is None or point.state.step - last.step >= snapshots.every
        return snapshots.method if due else self.method

    def estimator_at(self, point: Point) -> FiniteDifference:
        """Return the estimator of the next step."""
        estimator = self.method_at(point).finite_difference
        tuning = point.tuning
        if tuning is None or not estimator.tuned:
            return estimator
        return estimator.at(tuning.smoothing.width)

    def refreshed(self, point: Point) -> Point:
        """Return the point with a new subspace if the next step needs one."""
        state, every = point.state, self.method.refresh_every
        if not every or state.step % every or state.step == point.refreshed_at:
            return point
        return point._replace(state=self.method.refresh(state), refreshed_at=state.step)

    def ask(self, point: Point) -> Asked:
        """Return the points at which the loss is needed for the next step."""
        method, last, tuning = self.method_at(point), point.snapshot, point.tuning
        probes = method.propose(point.state)
        estimator = method.finite_difference if tuning is None else self.estimator_at(point)
        plan = NOTHING if tuning is None else tuning.plan
        snapshot = None if last is None else last.params
        along_probe: tuple[float, ...] = ()
        along_step: tuple[float, ...] = ()
        if plan.kind == "noise":
            along_probe = tuple(s * estimator.width for s in plan.scales)
        elif plan.kind == "line":
            along_step = plan.scales
        points = Candidates(
            estimator,
            point.params,
            probes,
            snapshot,
            along_probe=along_probe,
            along_step=along_step,
            step=_along(plan, point),
            project=self.project,
            binding=self.binding,
        )
        return Asked(point.state.step, points, probes, method, estimator, plan)

    def hear(self, point: Point, asked: Asked, losses: Array) -> Heard:
        """Return what the losses of what was asked for say."""
        tuning, verdict = point.tuning, USABLE
        # Differences are taken here, outside of compiled code: in float64 for host numbers.
        if tuning is None:
            return Heard(asked.estimator.differences(losses), None, verdict)
        told = losses[: len(asked.estimator.evaluations)]
        coefficients = asked.estimator.differences(told)
        tuning, verdict = self._tell_tuning(point, tuning, asked, coefficients, losses)
        if not verdict.usable:
            coefficients = coefficients * math.nan
        return Heard(coefficients, tuning, verdict)

    def remember(self, point: Point, heard: Heard) -> Point:
        """Return the point that knows its iterate for the best one.

        In a step of its own, so that the memory of one average is free when an iterate is made.
        """
        tuning, weight = heard.tuning, heard.verdict.weight
        if tuning is None or point.best_at == point.state.step:
            return point
        best, params = point.best, point.params
        if best is None and not tuning.averages and not tuning.descent.has_failed:
            return point
        if best is None or weight == 1.0:
            best = params
        else:
            mixed = self.binding.mix(leaves_of(best), leaves_of(params), weight)
            best = self._kept(like_params(params, mixed), mixed)
        return point._replace(best=best, best_at=point.state.step)

    def step(self, point: Point, asked: Asked, heard: Heard, best_seen: Best | None) -> Point:
        """Return the next point.

        Parameters
        ----------
        point : Point
        asked : Asked
        heard : Heard
        best_seen : Best or None
            Where a retreat leads if `Point.best` is None.
        """
        state, snapshot, method, advance = point.state, point.snapshot, asked.method, self.advance
        coefficients, tuning, verdict = heard
        if tuning is not None and point.tuning is not None:
            before = point.tuning.balance
            if tuning.balance is not before:
                changes = before.changes(tuning.balance)
                state = state._replace(leaves=tuple(map(rescaled, state.leaves, changes)))
        if method is not self.method:
            advance = self._advance_at_snapshot
            # The one number that a device is waited for, once a snapshot: whether it was taken.
            if bool(method.has_estimate(state, coefficients)):
                snapshot = Snapshot(point.params, state.step)
        rates = self.rates(point)[0]
        given = self._given(state) if self._traced else state
        after, step = advance(given, coefficients, asked.probes, rates)
        if self._traced:
            after = _counted(state, after)
        direction = point.direction
        params = self._back(point, best_seen) if verdict.retreat else self._iterate(point, step)
        if tuning is not None and tuning.search.tuned:
            direction = self._direction(after, step)
            if tuning.can_begin:
                tuning = tuning.begin(look((), (), *_lengths(asked.probes, direction)).geometry)
        return Point(
            params,
            after,
            point.refreshed_at,
            tuning,
            direction,
            point.best,
            point.best_at,
            snapshot,
            point.rate_factor,
        )

    def _tell_tuning(
        self, point: Point, tuning: Tuning, asked: Asked, coefficients: Array, losses: Array
    ) -> tuple[Tuning, Verdict]:
        """Hand the losses to the tuning, on the host, if it looks at them."""
        if not tuning.attentive:
            return tuning.passed(), USABLE
        count = len(asked.estimator.evaluations)
        (host, c), sizes, geometry = look(
            (losses, coefficients if coefficients.ndim == 1 else coefficients[0, ...]),
            sizes_of(self.method.rules_of(point.params)),
            *_lengths(asked.probes, point.direction),
        )
        return tuning.grown(sizes).told(c, host[:count], host[count:], geometry)

    def descend(self, point: Point, gradient: Any) -> Point:
        """Return the next point of a first-order method."""
        gradient, state = check_gradient(gradient, point.params), point.state
        given = self._given(state) if self._traced else state
        after, step = self._descend(given, gradient, self.rates(point)[0])
        if self._traced:
            after = _counted(state, after)
        return point._replace(params=self._iterate(point, step), state=after)

    def _given(self, state: State) -> State:
        """Return a state for what was compiled.

        The probes are given, so that no sampler is needed: runs that differ in their seeds alone
        share what was compiled.
        """
        return state if self._draws else state._replace(random=None)

    def _iterate(self, point: Point, step: tuple[Change, ...]) -> Any:
        """Return the parameters after a step."""
        arrays = self.binding.apply(leaves_of(point.params), step)
        return self._kept(like_params(point.params, arrays), arrays)

    def _back(self, point: Point, best_seen: Best | None) -> Any:
        """Return the parameters to which a retreat leads."""
        if point.best is not None:
            return point.best
        if best_seen is None:  # a copy of an optimizer, which is renewed now
            return point.params
        best = best_seen.point
        arrays = self.binding.claim(leaves_of(best))
        return self._kept(like_params(best, arrays), arrays)

    def _kept(self, params: Any, arrays: list[Array]) -> Any:
        """Return parameters, whose arrays these are, within the constraints or read-only."""
        if self.project is not None:
            return self.project(params)
        for x in arrays:
            _arrays.freeze(x)
        return params

    def release(self, before: Point, after: Point, held: list[Any]) -> None:
        """Take back the memory of what was left, unless somebody still needs it."""
        held = [after.params, *held]
        held += [] if after.best is None else [after.best]
        held += [] if after.snapshot is None else [after.snapshot.params]
        for left in (before.params, before.best):
            if left is not None:
                self.binding.release(leaves_of(left), held)

    def _direction(self, state: State, step: tuple[Change, ...]) -> tuple[Change, ...]:
        """Return the step for rate 1, nothing where the rate is given."""
        changes = []
        for leaf, change in zip(state.leaves, step, strict=True):
            tuned = self.method.rule(leaf.momentum.ndim).update.tuned
            unit = 1.0 if leaf.unit is None else leaf.unit
            changes.append(Change(change.left, change.right, -unit if tuned else 0.0, None))
        return tuple(changes)


def _lengths(
    probes: tuple[Probe, ...], direction: tuple[Change, ...]
) -> tuple[list[Length], list[Length]]:
    """Return the lengths of the first probe and of a direction, array by array."""
    return (
        [length(*probe.factors(0)) for probe in probes],
        [length(change.left, change.right, change.scale) for change in direction],
    )


def _along(plan: Plan, point: Point) -> tuple[Change, ...]:
    """Return the direction of a line: the last step, or the part of it that is a group's."""
    if plan.group is None or point.tuning is None:
        return point.direction
    return tuple(
        change if group == plan.group else change._replace(scale=0.0 * change.scale)
        for group, change in zip(point.tuning.balance.groups, point.direction, strict=True)
    )


def _counted(before: State, after: State) -> State:
    """Return a state that was compiled code's with an integer of the host for its number."""
    return State(before.step + 1, after.started, after.leaves, before.random)


# Half of the entries: a Gaussian probe whose standard deviation is below 0.7 units in the last
# place (its entries below half a unit round away) says more about rounding than about F.
_INVISIBLE = 0.5


def warn_of_invisible_probes(params: Any, asked: Asked) -> bool:
    """Warn the caller's caller if adding a probe leaves most entries of a parameter as they are.

    Returns whether it did.
    """
    names = sorted(params) if isinstance(params, dict) else ["x"]
    for name, x, probe in zip(names, leaves_of(params), asked.probes, strict=True):
        fraction = invisible_fraction(x, probe, asked.estimator.width)
        if fraction > _INVISIBLE:
            message = errors.invisible_probe(str(name), x.dtype, fraction)
            warnings.warn(message, errors.PrecisionWarning, stacklevel=3)
            return True
    return False
