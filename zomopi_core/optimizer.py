"""Ask and tell: the driver of a method for whoever owns the loop."""

from __future__ import annotations

import numbers
import os
from collections.abc import Sequence
from typing import Any

from . import _arrays, errors
from ._arrays import Array
from ._checks import flag
from .best import Best
from .binding import ArrayBinding
from .candidates import Candidates
from .catalog import find_method
from .constraints import Projection, projection
from .journal import Journal, Recorder, as_journal
from .losses import check_losses, join_losses, scalar_loss
from .method import Method, State, leaves_of
from .objective import (
    check_finite,
    check_params,
)
from .point import Point
from .sampling import Sampler
from .stepper import Asked, Stepper, warn_of_invisible_probes
from .tuning import (
    NOTHING,
    Plan,
    fit_memory,
    start_tuning,
)


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
    samples : bool
        Whether each step may see another sample of data. That is noticed from losses at the start,
        where they differ from step to step. Where it is expected, a later loss at the iterate that
        has risen shows it, too: at the start the loss may be the same for all samples. `minimize`
        expects it of a function with a `key`.
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
        samples: bool = False,
        journal: str | os.PathLike[str] | Journal | None = None,
    ) -> None:
        binding = ArrayBinding(reuse_buffers=flag("reuse_buffers", reuse_buffers))
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
        if flag("samples", samples) and tuning is not None:
            tuning = tuning.on_samples()
        best = params if tuning is not None and tuning.search.tuned else None
        self._point = Point(params, self.method.init(params, seed), 0, tuning, (), best)
        self._asked: Asked | None = None
        self._told: dict[int, Any] = {}  # losses of the pending question, told in part
        self._warned = False
        self._best_seen: Best | None = None
        self._stepper = Stepper(self.method, binding, self._project, self._point)
        self._recorder: Recorder | None = None
        if journal is not None:
            sampler, rules = (
                self.state.random.sampler,
                {"reuse_buffers": reuse_buffers, "samples": samples},
            )
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

    def __getstate__(self) -> dict[str, Any]:
        # The points stay behind: they are made again. A copy records nothing: two writers would
        # end a journal.
        state = {k: v for k, v in self.__dict__.items() if k != "_recorder"}
        return state | {"_asked": self._pending() is not None, "_best_seen": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_asked": None, "_recorder": None})
        if state["_asked"]:
            self.ask()

    def __repr__(self) -> str:
        return f"<Optimizer: {self.method.name}, {self.nit} steps>"

    @property
    def x(self) -> Any:
        """The current iterate, an array or a dict of arrays in the form of `x0`.

        No step changes an array that was handed out, unless buffers are reused; each makes a new
        one. NumPy arrays are read-only: copy them to change them.
        """
        return self._point.params

    @property
    def estimate(self) -> Any:
        """The iterate, or an average of the last ones where that is nearer to the minimum.

        The average where noise of F hides the minimum from line searches, so that iterates go
        around it. It is good as long as `x` is.
        """
        return self._point.estimate

    def _use_best_seen(self, best: Best) -> None:
        """Let a retreat lead to the best point seen, so that a run holds one array for both."""
        self._best_seen = best
        self._point = self._point._replace(best=None)

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
        return self._stepper.rates(self._point)[1]

    @property
    def _step_method(self) -> Method:
        """The method of the next step: another one where a snapshot is due."""
        return self._stepper.method_at(self._point)

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
            self._point = point = self._stepper.refreshed(self._point)
            asked = self._stepper.ask(point)
            if not self._warned and asked.step == point.refreshed_at:
                self._warned = warn_of_invisible_probes(point.params, asked)
            self._asked = asked
        return asked.points

    def _plan(self) -> Plan:
        tuning = self._point.tuning
        return NOTHING if tuning is None else tuning.plan

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
        return self._stepper.estimator_at(self._point).width

    def _pending(self) -> Asked | None:
        """Return what was asked for the step to be taken next; None if nothing was."""
        asked = self._asked
        return asked if asked is not None and asked.step == self._point.state.step else None

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
        self._stepper.forget_rates()

    def _take_step(self, losses: Array) -> bool:
        """Do the work of `tell` for a 1-d array of losses that was checked before.

        Returns whether the iterate went back.
        """
        asked, stepper, seen = self._pending(), self._stepper, self._best_seen
        if asked is None:
            raise errors.tell_before_ask()
        heard = stepper.hear(self._point, asked, losses)
        if heard.verdict.best:
            self._go_to(stepper.remember(self._point, heard))
        self._go_to(stepper.step(self._point, asked, heard, seen))
        self._asked = None  # and what it held
        return heard.verdict.retreat

    def _go_to(self, after: Point) -> None:
        # One assignment ends the step and with it the question, so that an interruption falls
        # before or behind it.
        before, self._point = self._point, after
        if self._stepper.releases:
            seen = self._best_seen
            held = [] if seen is None or seen.gave_way else [seen.base]
            self._stepper.release(before, after, held)

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
        self._point = point = self._stepper.refreshed(self._point)
        self._go_to(self._stepper.descend(point, gradient))


def _wrong_number(shape: tuple[int, ...], expected: int) -> Exception:
    got = shape[0] if len(shape) == 1 else f"an array of shape {shape}"
    return errors.wrong_number_of_losses(got, expected)


def _wrong_part(shape: tuple[int, ...], expected: int) -> Exception:
    got = shape[0] if len(shape) == 1 else f"an array of shape {shape}"
    return errors.wrong_part_of_losses(got, expected)
