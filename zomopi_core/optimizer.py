"""Ask and tell: the driver of a method for whoever owns the loop."""

from __future__ import annotations

import math
import numbers
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import _arrays, errors
from ._arrays import Array
from ._checks import flag
from .binding import ArrayBinding, Candidates
from .catalog import find_method
from .constraints import Projection, projection
from .estimator import FiniteDifference
from .journal import Journal, Recorder, as_journal
from .losses import check_losses, join_losses, scalar_loss
from .method import Method, State, leaves_of, like_params
from .objective import (
    check_finite,
    check_gradient,
    check_params,
    frobenius,
    invisible_fraction,
)
from .point import Point, Snapshot
from .rule import Probe
from .sampling import Sampler
from .smoothing import Geometry
from .tuning import (
    NOTHING,
    USABLE,
    Plan,
    Tuning,
    Verdict,
    fit_memory,
    start_tuning,
)
from .update import Change


class Asked(NamedTuple):
    """What `ask` returned, and for which step: it is answered as soon as that step is taken."""

    step: int
    points: Candidates
    probes: tuple[Probe, ...]
    method: Method
    estimator: FiniteDifference
    plan: Plan


class Optimizer:
    """Minimise by asking for points and telling their losses.

    Parameters
    ----------
    x0 : array or dict of arrays
        Real floating-point, of NumPy, CuPy, Torch, JAX or another library that follows the array
        API standard. Arrays with two axes are matrices; with more, (first axis, the rest) unless
        the method says otherwise; with one or none, vectors.
    method : str or Method
        A name from `methods`, or what a function of the catalogue returns.
    seed : int or Sampler
        Key of all random numbers: the same seed gives the same run, on the same library and
        kind of device to the bit.
    bounds : (low, high), optional
        Applied to the iterate after each step: numbers, arrays, or dicts of them; None leaves a
        side open. The points of `ask` may lie outside by a probe.
    project : callable, optional
        Applied to the iterate after each step (after `bounds`): takes the parameters and returns
        feasible ones.
    reuse_buffers : bool
        Whether the points of `ask` share one piece of memory and iterates take turns in theirs,
        which saves the time of allocating them. A point is then good until the next one is made,
        and `x` until the next step: copy what you keep. Nor may a point be changed, as the
        next one is made of it: NumPy arrays are read-only, and a Torch tensor that was changed
        in place is made again.
    journal : str, path or Journal, optional
        File in which every `tell` is recorded before its step is taken, so that
        `Optimizer.resume` goes on after a crash. It must not exist.

    Raises
    ------
    TypeError, ValueError
        If `x0` or an option cannot be used; the message names it and the remedy.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> target = np.outer(np.arange(4.0), np.ones(3))
    >>> method = zo.zo_mopi(learning_rate=zo.linear_decay(0.2, 150))
    >>> optimizer = zo.Optimizer(np.zeros((4, 3)), method=method)
    >>> for _ in range(150):
    ...     points = optimizer.ask()
    ...     optimizer.tell([np.sum((x - target) ** 2) for x in points])
    >>> bool(np.sum((optimizer.x - target) ** 2) < 0.1)
    True
    """

    def __init__(
        self,
        x0: Any,
        *,
        method: str | Method = "zo-mopi",
        seed: int | Sampler = 0,
        bounds: Any = None,
        project: Projection | None = None,
        reuse_buffers: bool = False,
        journal: str | os.PathLike[str] | Journal | None = None,
    ) -> None:
        self._binding = ArrayBinding(reuse_buffers=flag("reuse_buffers", reuse_buffers))
        journal = as_journal(journal)
        start = params = check_params(x0)
        for x in leaves_of(params):
            _arrays.freeze(x)
        self.method = find_method(method)
        self._project = projection(bounds, project, params)
        if self._project is not None:
            params = check_finite(self._project(params), "project(x0)")
        self.method = fit_memory(self.method, params)
        tuning = start_tuning(self.method, params)
        self._point = Point(params, self.method.init(params, seed), 0, tuning, (), params)
        self._asked: Asked | None = None
        self._told: dict[int, Any] = {}  # losses of the pending question, told in part
        self._warned = self._handed_over = False
        #: returns the parameters beside its own whose memory whoever drives it still needs
        self.held: Callable[[], list[Any]] = list
        arrays = leaves_of(params)
        first = next((i for i, x in enumerate(arrays) if x.ndim >= 2), 0)
        unit = self._point.state.leaves[first].unit
        self._first_kind = 0 if arrays[first].ndim >= 2 else 1
        self._cached_rates: tuple[int, tuple[Any, Any], float] = (-1, (0.0, 0.0), 0.0)
        self._constant = tuning is None and self.method.snapshots is None
        for x in arrays:
            self._constant &= self.method.rule(x.ndim).update.constant
        self._unit = 1.0 if unit is None else float(unit)
        self._compile()
        self._recorder: Recorder | None = None
        if journal is not None:
            sampler, rules = self.state.random.sampler, {"reuse_buffers": reuse_buffers}
            self._recorder = Recorder.start(
                journal, "optimizer", start, self.method, sampler, bounds, project, rules
            )

    @classmethod
    def resume(
        cls,
        journal: str | os.PathLike[str] | Journal,
        *,
        x0: Any = None,
        method: Method | None = None,
        seed: Sampler | None = None,
        bounds: Any = None,
        project: Projection | None = None,
        exact: bool = True,
    ) -> Optimizer:
        """Return the optimizer of a journal where it was, ready for the next `ask`.

        Parameters
        ----------
        journal : str, path or Journal
            What an optimizer was given as `journal`; it goes on recording there.
        x0, method, seed, bounds, project, exact
            As in `resume`.

        Returns
        -------
        Optimizer
            Losses that were told in part are known: `missing` lists the others.

        Raises
        ------
        JournalError
            If the journal cannot be used, or not with these arguments.
        """
        from .resume import resume_optimizer

        return resume_optimizer(
            journal, x0=x0, method=method, seed=seed, bounds=bounds, project=project, exact=exact
        )

    def _compile(self) -> None:
        self._draws = self.method.draws_in_update
        # The rates are given, so that runs of different length share what was compiled.
        method = self.method.with_horizon(None)
        self._advance, self._descend = method.advance, method.descend
        at_snapshot = method if method.snapshots is None else method.snapshots.method
        self._advance_at_snapshot = at_snapshot.advance
        if not self._draws or self._point.state.random.can_be_traced:
            self._advance = _arrays.compiled(self._advance, self._point.state.started)
            self._descend = _arrays.compiled(self._descend, self._point.state.started)
            self._advance_at_snapshot = _arrays.compiled(
                self._advance_at_snapshot, self._point.state.started
            )

    def __getstate__(self) -> dict[str, Any]:
        # What was compiled stays behind, and so do the points: they are made again.
        # A copy records nothing: two writers would end a journal.
        compiled = {"_advance", "_advance_at_snapshot", "_descend", "_recorder"}
        state = {k: v for k, v in self.__dict__.items() if k not in compiled}
        return state | {"_asked": self._pending() is not None, "held": list}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_asked": None, "_recorder": None})
        self._compile()
        if state["_asked"]:
            self.ask()

    def __repr__(self) -> str:
        return f"<Optimizer: {self.method.name}, {self.nit} steps>"

    @property
    def x(self) -> Any:
        """The current iterate, an array or a dict of arrays in the form of `x0`.

        No step changes an array that was handed out; each makes a new one. NumPy arrays are
        read-only: copy them to change them.
        """
        return self._point.params

    @property
    def nit(self) -> int:
        """Number of steps taken."""
        return int(self._point.state.step)

    @property
    def state(self) -> State:
        """State of the method."""
        return self._point.state

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step, of the first matrix (of the first array if none is)."""
        return self._rates()[1]

    def _rates(self) -> tuple[tuple[Any, Any], float]:
        """Return the rates of the next step, and the learning rate of the first matrix.

        They are computed here, where a schedule may be any function, and once a step.
        """
        point = self._point
        step = point.state.step
        if self._cached_rates[0] != step and not self._same_rates(point):
            method, tuning = self._step_method, point.tuning
            rates = method.rates(step)
            if tuning is not None:
                rules = method.matrices, method.vectors
                pairs = zip(rules, rates, strict=True)
                tuned = [tuning.rate if r.update.tuned else given for r, given in pairs]
                rates = (tuned[0], tuned[1])
            if (factor := point.rate_factor) != 1.0:
                rates = (factor * rates[0], factor * rates[1])
            self._cached_rates = step, rates, float(rates[self._first_kind]) * self._unit
        return self._cached_rates[1:]

    def _same_rates(self, point: Point) -> bool:
        """Tell whether the rates computed last hold for all steps."""
        return self._constant and self._cached_rates[0] >= 0 and point.rate_factor == 1.0

    @property
    def _step_method(self) -> Method:
        """The method of the next step: another one where a snapshot is due."""
        snapshots = self.method.snapshots
        if snapshots is None:
            return self.method
        state, last = self._point.state, self._point.snapshot
        due = last is None or state.step - last.step >= snapshots.every
        return snapshots.method if due else self.method

    def ask(self) -> Candidates:
        """Return the points at which the loss is needed.

        Returns
        -------
        sequence of arrays or dicts of arrays
            Made one at a time, when they are asked for. The order is that of
            ``method.estimator.evaluations``: ``[baseline where there is one], +1, -1, +2, ...``
            or ``+1, +2, ...``, and behind these the points of the tuning where it has any. Until
            `tell`, another call returns the same points.

            Where the loss is a mean over data, all points of a step want the same batch; its
            attribute `full_batch` is True where they want all data (`mezo_svrg`).
        """
        asked = self._pending()
        if asked is None:
            params, state = self._refreshed()
            method, last = self._step_method, self._point.snapshot
            probes = method.propose(state)
            if self._point.tuning is None:
                estimator, plan = method.finite_difference, NOTHING
            else:
                estimator, plan = self._estimator(), self._plan()
            if not self._warned and state.step == self._point.refreshed_at:
                self._warn_of_invisible_probes(params, probes, estimator.width)
            snapshot = None if last is None else last.params
            if plan.kind == "noise":
                scales = tuple(s * estimator.width for s in plan.scales)
                points = Candidates(
                    estimator, params, probes, snapshot, along_probe=scales, binding=self._binding
                )
            elif plan.kind == "line":
                points = Candidates(
                    estimator,
                    params,
                    probes,
                    snapshot,
                    along_step=plan.scales,
                    step=self._point.direction,
                    project=self._project,
                    binding=self._binding,
                )
            else:
                points = Candidates(estimator, params, probes, snapshot, binding=self._binding)
            self._asked = asked = Asked(state.step, points, probes, method, estimator, plan)
        return asked.points

    def _plan(self) -> Plan:
        tuning = self._point.tuning
        return NOTHING if tuning is None else tuning.plan

    def _estimator(self) -> FiniteDifference:
        """Return the estimator of the next step."""
        estimator = self._step_method.finite_difference
        tuning = self._point.tuning
        if tuning is None or not estimator.tuned:
            return estimator
        return estimator.at(tuning.smoothing.width)

    @property
    def tunes(self) -> bool:
        """Whether a learning rate or the smoothing is measured during the run."""
        return self._point.tuning is not None

    @property
    def tunes_rate(self) -> bool:
        """Whether the learning rate is measured during the run."""
        tuning = self._point.tuning
        return tuning is not None and tuning.search.tuned

    @property
    def queries(self) -> int:
        """Number of points that the next `ask` returns, or that a pending one has returned."""
        return self.probe_queries + len(self._plan().scales)

    @property
    def probe_queries(self) -> int:
        """Number of these points that make the estimate; they come first."""
        return self._step_method.evaluations_per_step

    @property
    def noise(self) -> float:
        """Standard deviation of a loss at one point, as far as it was measured; else 0."""
        tuning = self._point.tuning
        return tuning.noise.level if tuning is not None and tuning.noise.random else 0.0

    def skip_search(self) -> None:
        """Leave out the points beside the probes that the next step would ask for."""
        tuning = self._point.tuning
        if tuning is not None and self._plan().kind and self._pending() is None:
            self._point = self._point._replace(tuning=tuning.postponed())

    def skip_noise(self) -> None:
        """Leave the noise of the function unmeasured, for a run too short to pay for it."""
        tuning = self._point.tuning
        if tuning is not None and self.nit == 0 and self._pending() is None:
            self._point = self._point._replace(tuning=tuning.without_noise())

    @property
    def smoothing(self) -> float:
        """Smoothing of the next step."""
        return self._estimator().width

    def _pending(self) -> Asked | None:
        """Return what was asked for the step to be taken next; None if nothing was."""
        asked = self._asked
        return asked if asked is not None and asked.step == self._point.state.step else None

    def _refreshed(self) -> tuple[Any, State]:
        """Return the parameters and the state, with a new subspace if this step needs one."""
        params, state, refreshed_at = self._point[:3]
        every = self.method.refresh_every
        if every and state.step % every == 0 and state.step != refreshed_at:
            state = self.method.refresh(state)
            self._point = self._point._replace(state=state, refreshed_at=state.step)
        return params, state

    @property
    def missing(self) -> list[int]:
        """Numbers of the pending question's points whose losses are still to be told."""
        asked = self._pending()
        if asked is None:
            return []
        return [i for i in range(len(asked.points)) if i not in self._told]

    def tell(self, losses: Any, indices: Sequence[int] | None = None) -> None:
        """Take a step from the losses of the points that `ask` returned.

        Parameters
        ----------
        losses : sequence of float or of 0-d arrays, or 1-d array
            One for each point, in their order. A probe with a loss that is NaN or infinite has
            no part in the step; without any valid probe the step changes nothing.
        indices : sequence of int, optional
            The numbers of the points, where these are some of the losses or not in their order.
            The step is taken with the last of them; until then `missing` lists the others.

        Raises
        ------
        RuntimeError
            If no `ask` is pending.
        ValueError, TypeError
            If the losses are not as many real numbers as there were points, or as `indices`; if
            an index is none of a point, or its loss was told before.
        """
        asked = self._pending()
        if asked is None:
            raise errors.tell_before_ask()
        count = len(asked.points)
        if indices is not None:
            self._tell_part(check_losses(losses, len(indices), _wrong_part), indices, count)
            if len(self._told) < count:
                return
            checked = join_losses([self._told[i] for i in range(count)])
        elif self._told:
            raise errors.told_in_part(self.missing)
        else:
            checked = check_losses(losses, count, _wrong_number)
        if self._recorder is not None:
            checked = self._recorder.tell(self, checked)
        self._take_step(checked)
        self._told = {}
        if self._recorder is not None:
            self._recorder.after_step(self.nit, lambda: {"point": self._point})

    def _tell_part(self, losses: Array, indices: Sequence[int], count: int) -> None:
        known = set(self._told)
        for i in indices:
            if isinstance(i, bool) or not isinstance(i, numbers.Integral) or not 0 <= i < count:
                raise errors.no_such_point(i, count)
            if i in known:
                raise errors.told_before(int(i))
            known.add(int(i))
        for i, loss in zip(indices, losses, strict=True):
            scalar = scalar_loss(loss)
            if self._recorder is not None:
                self._recorder.write_probe(int(i), scalar)
            self._told[int(i)] = scalar

    def close(self) -> None:
        """Close the journal, if there is one; after that, steps are no longer recorded."""
        if self._recorder is not None:
            self._recorder.save(self.nit, lambda: {"point": self._point})
            self._recorder.close()
            self._recorder = None

    def follow(self, losses: Any) -> None:
        """Take a step from the losses of an optimizer of which this is a copy.

        Parameters
        ----------
        losses : 1-d array
            What the other was told; where it left out the points beside the probes, so does this.
        """
        if losses.shape[0] < self.queries:
            self._asked = None  # the question that the other left out
            self.skip_search()
        checked = check_losses(losses, len(self.ask()), _wrong_number)
        self._take_step(checked)

    def _restore(self, point: Point) -> None:
        """Go on from a point of this method, on parameters of this form."""
        for x in leaves_of(point.params):
            _arrays.freeze(x)
        self._point, self._asked, self._told = point, None, {}
        self._cached_rates = (-1, (0.0, 0.0), 0.0)

    def _take_step(self, losses: Array) -> None:
        """Do the work of `tell` for a 1-d array of losses that was checked before."""
        asked = self._pending()
        if asked is None:
            raise errors.tell_before_ask()
        params, state, tuning = self._point.params, self._point.state, self._point.tuning
        method, advance, snapshot = asked.method, self._advance, self._point.snapshot
        verdict = USABLE
        if tuning is None:
            coefficients = asked.estimator.differences(losses)
        else:
            told = losses[: len(asked.estimator.evaluations)]
            coefficients = asked.estimator.differences(told)
            tuning, verdict = self._tell_tuning(tuning, asked, coefficients, losses)
            if not verdict.usable:
                coefficients = coefficients * math.nan
        # Differences are taken here, outside of compiled code: in float64 for host numbers. The
        # probes are given, so that no sampler is needed: runs that differ in their seeds alone
        # share what was compiled.
        random = state.random if self._draws else None
        if method is not self.method:
            advance = self._advance_at_snapshot
            # The one number that a device is waited for, once a snapshot: whether it was taken.
            if bool(method.has_estimate(state, coefficients)):
                snapshot = Snapshot(params, state.step)
        new, step = advance(
            State(state.step, state.started, state.leaves, random),
            coefficients,
            asked.probes,
            self._rates()[0],
        )
        self._move(new, step, tuning, asked.probes, verdict, snapshot)

    def _tell_tuning(
        self, tuning: Tuning, asked: Asked, coefficients: Array, losses: Array
    ) -> tuple[Tuning, Verdict]:
        """Hand the losses to the tuning, on the host, if it looks at them."""
        if not tuning.attentive:
            return tuning.passed(), USABLE
        count = len(asked.estimator.evaluations)
        host = _arrays.to_host(losses).tolist()
        c = _arrays.to_host(coefficients)
        return tuning.grown(self.method.rules_of(self._point.params)).told(
            (c if c.ndim == 1 else c[0]).tolist(),
            host[:count],
            host[count:],
            self._geometry(self._point.direction, asked.probes),
        )

    @staticmethod
    def _geometry(direction: tuple[Change, ...], probes: tuple[Probe, ...]) -> Geometry:
        probe = math.hypot(*(frobenius(*p.factors(0)) for p in probes))
        lengths = [frobenius(c.left, c.right) * abs(float(c.scale)) for c in direction]
        return Geometry(probe, math.hypot(*lengths))

    def descend(self, gradient: Any) -> None:
        """Take a step of a first-order method.

        Parameters
        ----------
        gradient : array or dict of arrays
            dF/dX at `x`, in its form. If an entry is not finite the step changes nothing.

        Raises
        ------
        TypeError
            If the method estimates gradients itself.
        ValueError
            If the gradient does not fit the parameters.
        """
        if self.method.estimator is not None:
            raise errors.takes_no_gradient(self.method.name)
        params, state = self._refreshed()
        random = state.random if self._draws else None
        gradient = check_gradient(gradient, params)
        new, step = self._descend(state._replace(random=random), gradient, self._rates()[0])
        self._move(new, step, None, (), USABLE)

    def _move(
        self,
        new: State,
        step: tuple[Change, ...],
        tuning: Tuning | None,
        probes: tuple[Probe, ...],
        verdict: Verdict,
        snapshot: Snapshot | None = None,
    ) -> None:
        before, state, refreshed_at, _, direction, best, _, factor = self._point
        if verdict.best:
            best = before
        if verdict.retreat:
            params = best
        else:
            params = like_params(before, self._binding.apply(leaves_of(before), step))
        if self._project is not None:
            params = self._project(params)
        else:
            for x in leaves_of(params):
                _arrays.freeze(x)
        # The number of the step stays an integer of the host, whatever was compiled. Parameters,
        # state and the end of the question change in one assignment, between whose halves no
        # interruption can fall.
        after = State(state.step + 1, *new[1:3], state.random)
        if tuning is None:
            best = params
        elif tuning.search.tuned:
            direction = self._direction(after, step)
            if not tuning.search.begun:
                tuning = tuning.begin(self._geometry(direction, probes))
        self._point = Point(params, after, refreshed_at, tuning, direction, best, snapshot, factor)
        self._asked = None  # and what it held
        # With a projection the array may belong to that.
        if self._binding.reuse_buffers and self._project is None:
            held = [params, best, *self.held()]
            held += [] if snapshot is None else [snapshot.params]
            self._binding.release(leaves_of(before), held)

    def fresh(self, point: Any) -> Any:
        """Return a copy of a point; where buffers are reused, in the memory of points."""
        return like_params(point, self._binding.copy(leaves_of(point)))

    def hand_over(self, point: Any) -> Any:
        """Return a point for the caller to own, at the end of a run.

        Where buffers are reused it is no copy if that can be: no step may follow.
        """
        arrays, binding = leaves_of(point), self._binding
        own = all(x is y for x, y in zip(arrays, leaves_of(self.x), strict=True))
        may_be_given = own and binding.reuse_buffers and not self._handed_over
        if may_be_given and all(_arrays.thaw(x) for x in arrays):
            self._handed_over = True
            return point
        return like_params(point, binding.surrender(arrays))

    def _direction(self, state: State, step: tuple[Change, ...]) -> tuple[Change, ...]:
        """Return the step for rate 1, nothing where the rate is given."""
        changes = []
        for leaf, change in zip(state.leaves, step, strict=True):
            tuned = self.method.rule(leaf.momentum.ndim).update.tuned
            unit = 1.0 if leaf.unit is None else leaf.unit
            changes.append(Change(change.left, change.right, -unit if tuned else 0.0, None))
        return tuple(changes)

    def _warn_of_invisible_probes(
        self, params: Any, probes: tuple[Probe, ...], smoothing: float
    ) -> None:
        """Warn, once, if adding a probe leaves most entries of a parameter as they are."""
        names = sorted(params) if isinstance(params, dict) else ["x"]
        for name, x, probe in zip(names, leaves_of(params), probes, strict=True):
            fraction = invisible_fraction(x, probe, smoothing)
            if fraction > _INVISIBLE:
                self._warned = True
                message = errors.invisible_probe(str(name), x.dtype, fraction)
                warnings.warn(message, errors.PrecisionWarning, stacklevel=3)
                return


# Half of the entries: a Gaussian probe whose standard deviation is below 0.7 units in the last
# place (its entries below half a unit round away) says more about rounding than about F.
_INVISIBLE = 0.5


def _wrong_number(shape: tuple[int, ...], expected: int) -> Exception:
    got = shape[0] if len(shape) == 1 else f"an array of shape {shape}"
    return errors.wrong_number_of_losses(got, expected)


def _wrong_part(shape: tuple[int, ...], expected: int) -> Exception:
    got = shape[0] if len(shape) == 1 else f"an array of shape {shape}"
    return errors.wrong_part_of_losses(got, expected)
