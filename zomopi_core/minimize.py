"""The loop: budget, stopping, callbacks, the best point seen."""

from __future__ import annotations

import contextlib
import math
import numbers
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, errors
from ._checks import check_count, check_name, finite, positive
from ._progress import progress_display
from .catalog import find_method
from .constraints import Projection
from .method import Method, leaves_of, like_params
from .objective import Candidates, Objective
from .optimizer import Optimizer
from .sampling import Sampler, step_key

# Queries beside the steps: one for x0 and two to check the result. They are spent where they are
# at most a tenth of the budget or so: below this many steps each query is worth more in a step.
_CHECKS = 3
_STEPS_WORTH_CHECKS = 10

_MESSAGES = {
    "max_queries": "The budget of evaluations is spent.",
    "max_steps": "The number of steps is reached.",
    "max_time": "The time is up.",
    "target": "The target is reached.",
    "stagnation": "The best loss has not improved for the number of steps given as stagnation.",
    "callback": "The callback asked to stop.",
    "interrupted": "Interrupted from the keyboard; this is what was reached.",
}


class Iteration(NamedTuple):
    """What a callback gets after each step.

    Attributes
    ----------
    step : int
        Number of steps taken.
    queries : int
        Evaluations of the function so far.
    x : array or dict of arrays
        The iterate; not to be changed in place.
    loss : float
        Mean loss of the step's points, NaN where none was finite.
    best : float
        Lowest loss seen.
    learning_rate : float
        Learning rate of the step (of the first matrix).
    elapsed : float
        Seconds since the start.
    """

    step: int
    queries: int
    x: Any
    loss: float
    best: float
    learning_rate: float
    elapsed: float


@dataclass(frozen=True, repr=False)
class Result:
    """Outcome of `minimize`.

    Attributes
    ----------
    x : array or dict of arrays
        The best point seen, in the form of `x0`. Under bounds or a projection the best iterate.
    fun : float
        Its loss. Where a second evaluation there gives another value (a noisy function), it is
        that second value.
    x_last : array or dict of arrays
        The last iterate.
    nfev : int
        Evaluations of the function, every one counted.
    nit : int
        Steps taken.
    success : bool
        Whether the run ended as asked: by budget, time, stagnation, the callback or the target;
        False after an interruption, and if a target was given and not reached.
    status : str
        ``"max_queries"``, ``"max_steps"``, ``"max_time"``, ``"target"``, ``"stagnation"``,
        ``"callback"`` or ``"interrupted"``; ``"failed"`` in the result that an exception carries.
    message : str
        The same in a sentence.
    history : dict of str to numpy.ndarray
        One entry a step: ``"queries"``, ``"loss"``, ``"best"``, ``"learning_rate"`` and
        ``"elapsed"`` (seconds), as in `Iteration`.
    """

    x: Any
    fun: float
    x_last: Any
    nfev: int
    nit: int
    success: bool
    status: str
    message: str
    history: dict[str, np.ndarray[Any, Any]] = field(compare=False)

    def __repr__(self) -> str:
        names = ("message", "success", "status", "fun", "nfev", "nit")
        lines = [f"{name:>8}: {getattr(self, name)}" for name in names]
        return "\n".join([*lines, f"{'x':>8}: {_describe(self.x)}"])


def _describe(x: Any) -> str:
    if isinstance(x, Mapping):
        return ", ".join(f"{name} {_describe(value)}" for name, value in x.items())
    return f"array of shape {tuple(x.shape)}, {_arrays.dtype_name(x)}"


class _Best:
    """The lowest loss seen and how to make its point again, without copying parameters.

    No step changes an array in place, so a reference to the iterate and the thin factors of the
    probe stand for the point.
    """

    def __init__(self) -> None:
        self.loss = math.inf
        self.step = 0
        self._point: Any = None
        self._candidates: Candidates | None = None
        self._index = 0

    def offer(self, loss: float, step: int, point: Any) -> None:
        if loss < self.loss or self._point is None:
            self.loss = loss if math.isfinite(loss) else math.inf
            self.step, self._point, self._candidates = step, point, None

    def offer_candidates(self, losses: list[float], step: int, candidates: Candidates) -> None:
        lowest = min((x for x in losses if math.isfinite(x)), default=math.inf)
        if lowest < self.loss:
            self.loss, self.step = lowest, step
            self._candidates, self._index = candidates, losses.index(lowest)

    @property
    def point(self) -> Any:
        return self._point if self._candidates is None else self._candidates[self._index]


class _Failures:
    """What happens to a loss that is not finite, and to an exception in the function."""

    KINDS = ("non-finite", "exception")
    POLICIES = ("skip", "raise")

    def __init__(self, on_failure: str | Mapping[str, str] | None) -> None:
        policy = {"non-finite": "skip", "exception": "raise"}
        if isinstance(on_failure, str):
            policy = dict.fromkeys(self.KINDS, on_failure)
        elif on_failure is not None:
            for kind in on_failure:
                check_name("on_failure's keys", kind, self.KINDS)
            policy |= on_failure
        for value in policy.values():
            check_name("on_failure", value, self.POLICIES)
        self._policy = policy

    def of_exception(self, error: Exception) -> float:
        """Return the loss that stands for an exception, or raise it."""
        if self._policy["exception"] == "raise":
            raise error
        return math.nan

    def check(self, losses: list[float]) -> None:
        """Raise if a loss is not finite and the policy says so."""
        if self._policy["non-finite"] == "raise" and not all(map(math.isfinite, losses)):
            raise errors.NonFiniteLossError(f"fun returned a loss that is not finite: {losses}")


class _Run:
    """One call of `minimize`: the counters and the points, so that they outlive an exception."""

    def __init__(
        self,
        optimizer: Optimizer,
        objective: Objective,
        failures: _Failures,
        *,
        seed: int,
        constrained: bool,
        max_queries: int | None,
        max_steps: int | None,
        max_time: float | None,
        target: float | None,
        stagnation: int | None,
    ) -> None:
        self.optimizer, self.objective, self.failures = optimizer, objective, failures
        self.seed, self.constrained = seed, constrained
        self.max_queries, self.max_steps, self.max_time = max_queries, max_steps, max_time
        self.target, self.stagnation = target, stagnation
        self.per_step = optimizer.method.evaluations_per_step
        self.checks = _spare_queries(max_queries, self.per_step)
        self.best = _Best()
        self.best.offer(math.inf, 0, optimizer.x)
        self.noisy = False
        self.rows: list[tuple[int, float, float, float, float]] = []
        self.began = time.perf_counter()

    def evaluate(self, points: Any) -> tuple[Any, list[float]]:
        """Return the losses of `points`, where they were computed and as numbers."""
        key = step_key(self.seed, self.optimizer.nit) if self.objective.takes_key else 0
        losses = self.objective(points, key, self.failures.of_exception)
        host = _arrays.to_host(losses).tolist()
        self.failures.check(host)
        return losses, host

    def evaluate_at(self, point: Any) -> float:
        copy = like_params(point, [_arrays.copy(x) for x in leaves_of(point)])
        return self.evaluate([copy])[1][0]

    def step(self) -> Iteration:
        optimizer = self.optimizer
        rate, point = optimizer.learning_rate, optimizer.x
        candidates = optimizer.ask()
        losses, host = self.evaluate(candidates)
        loss = sum(host) / len(host)
        if not math.isfinite(loss):
            finite = [x for x in host if math.isfinite(x)]
            loss = sum(finite) / len(finite) if finite else math.nan
        if self.constrained:  # probes may lie outside: only iterates count
            self.best.offer(loss, optimizer.nit, point)
        else:
            self.best.offer_candidates(host, optimizer.nit, candidates)
        optimizer._take_step(losses)  # what the objective returned is checked
        elapsed = time.perf_counter() - self.began
        self.rows.append((self.objective.calls, loss, self.best.loss, rate, elapsed))
        return Iteration(
            optimizer.nit, self.objective.calls, optimizer.x, loss, self.best.loss, rate, elapsed
        )

    def why_stop(self) -> str | None:
        """Return the name of the rule that ends the run now, or None."""
        nit, calls = self.optimizer.nit, self.objective.calls
        if self.target is not None and self.best.loss <= self.target and self.confirm():
            return "target"
        left = math.inf if self.max_queries is None else self.max_queries - calls
        if left - (2 if self.checks else 0) < self.per_step:
            return "max_queries"
        if self.max_steps is not None and nit >= self.max_steps:
            return "max_steps"
        if self.max_time is not None and time.perf_counter() - self.began >= self.max_time:
            return "max_time"
        if self.stagnation is not None and nit - self.best.step > self.stagnation:
            return "stagnation"
        return None

    def confirm(self) -> bool:
        """Evaluate the best point again and tell whether its loss is still within the target.

        A function that gives another value there is noisy, and its lowest value of many was luck.
        """
        if self.target is None or not self.affords(1):
            return self.target is not None
        again = self.evaluate_at(self.best.point)
        if again != self.best.loss:
            self.noisy = not self.constrained
            self.best.loss = again if math.isfinite(again) else math.inf
        return self.best.loss <= self.target

    def affords(self, queries: int) -> bool:
        return self.max_queries is None or self.objective.calls + queries <= self.max_queries

    def settle(self, status: str) -> None:
        """Choose between the best point seen and the last iterate by fresh evaluations."""
        if not self.checks or status == "target":
            return
        if self.affords(1):
            again = self.evaluate_at(self.best.point)
            if math.isfinite(again):
                self.best.loss = again
        if self.affords(1):
            self.best.offer(
                self.evaluate_at(self.optimizer.x), self.optimizer.nit, self.optimizer.x
            )

    def result(self, status: str, message: str | None = None) -> Result:
        columns = np.asarray(self.rows, dtype=np.float64).reshape(-1, 5).T
        names = ("queries", "loss", "best", "learning_rate", "elapsed")
        history = dict(zip(names, columns, strict=True))
        history["queries"] = history["queries"].astype(np.int64)
        success = status not in ("interrupted", "failed")
        if self.target is not None:
            success = success and self.best.loss <= self.target
        return Result(
            self.best.point,
            self.best.loss,
            self.optimizer.x,
            self.objective.calls,
            self.optimizer.nit,
            success,
            status,
            message or _MESSAGES[status],
            history,
        )


def _spare_queries(max_queries: int | None, per_step: int) -> int:
    enough = max_queries is None or max_queries >= _STEPS_WORTH_CHECKS * per_step
    return _CHECKS if enough else 0


def _horizon(max_queries: int | None, max_steps: int | None, per_step: int) -> int | None:
    """Return the number of steps that the budget pays for; None if only time limits the run."""
    limits = [] if max_steps is None else [max_steps]
    if max_queries is not None:
        limits.append((max_queries - _spare_queries(max_queries, per_step)) // per_step)
    return min(limits, default=None)


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    *,
    method: str | Method = "zo-mopi",
    max_queries: int | None = None,
    max_steps: int | None = None,
    max_time: float | None = None,
    target: float | None = None,
    stagnation: int | None = None,
    seed: int | Sampler = 0,
    vectorized: bool = False,
    bounds: Any = None,
    project: Projection | None = None,
    on_failure: str | Mapping[str, str] | None = None,
    callback: Callable[[Iteration], Any] | None = None,
    progress: bool = False,
) -> Result:
    """Minimise a function of matrices by calling it, without derivatives.

    Parameters
    ----------
    fun : callable
        ``fun(x) -> float``, with `x` in the form of `x0`: a number, or a 0-d array that may stay
        on its device. If it has a parameter named `key`, it also gets ``key=``, an integer below
        2**31 that is the same for all evaluations of a step and differs between steps: seed the
        noise of a simulator or choose a minibatch with it.
    x0 : array or dict of arrays
        Where to start. Real floating-point, of NumPy, CuPy, Torch, JAX or another library that
        follows the array API standard; it is not changed.
    method : str or Method
        A name from `methods`, or what a function of the catalogue returns.
    max_queries : int, optional
        Most evaluations of `fun`, every one counted; one of `max_queries`, `max_steps` and
        `max_time` must be given. From ten steps on, one is spent on `x0` and
        two at the end on the best point seen and the last iterate.
    max_steps : int, optional
        Most steps.
    max_time : float, optional
        Seconds after which no new step begins.
    target : float, optional
        Loss at which to stop, confirmed by a second evaluation.
    stagnation : int, optional
        Steps without a new lowest loss after which to stop.
    seed : int or Sampler
        Key of all random numbers.
    vectorized : bool
        Whether `fun` takes a stack of candidates (q, m, n), or a dict of stacks, and returns q
        losses.
    bounds : (low, high), optional
        Applied to the iterate after each step: numbers, arrays, or dicts of them, None leaves a
        side open. The points at which `fun` is evaluated may lie outside by a probe.
    project : callable, optional
        Applied to the iterate after each step, after `bounds`.
    on_failure : {"skip", "raise"} or dict, optional
        What to do when a loss is not finite or `fun` raises an exception; a dict has the keys
        ``"non-finite"`` (default ``"skip"``: the probe is left out) and ``"exception"`` (default
        ``"raise"``). An exception carries what was reached in its attribute ``result``.
    callback : callable, optional
        Called with an `Iteration` after each step; returning True, or raising StopIteration,
        stops the run.
    progress : bool
        Whether to show a progress bar (extra ``cli``).

    Returns
    -------
    Result

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be used; the message names it and the remedy.

    Notes
    -----
    A default learning rate, that of a method made without one, is proportional to one over the
    square root of the number of steps that `max_queries` or `max_steps` pay for and falls linearly
    to zero over them; it is constant if only time limits the run.

    Ctrl-C ends the run and returns what was reached, with status ``"interrupted"``.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> target = np.outer(np.arange(1.0, 9.0), np.ones(6)) / 8
    >>> result = zo.minimize(lambda x: np.mean((x - target) ** 2), np.zeros((8, 6)),
    ...                      max_queries=6000)
    >>> result.fun < 0.01, result.nfev <= 6000
    (True, True)
    """
    if max_queries is None and max_steps is None and max_time is None:
        raise errors.no_stopping_rule()
    for name, count in (
        ("max_queries", max_queries),
        ("max_steps", max_steps),
        ("stagnation", stagnation),
    ):
        if count is not None:
            check_count(name, count)
    if max_time is not None:
        positive("max_time", max_time)
    if target is not None:
        target = finite("target", target)
    method = find_method(method)
    per_step = method.evaluations_per_step
    if max_queries is not None and max_queries < per_step:
        raise errors.budget_below_step(max_queries, per_step)
    steps = _horizon(max_queries, max_steps, per_step)
    if steps is not None:
        method = method.with_horizon(steps)
    objective = Objective(fun, vectorized=vectorized)
    failures = _Failures(on_failure)
    run = _Run(
        Optimizer(x0, method=method, seed=seed, bounds=bounds, project=project),
        objective,
        failures,
        # a sampler of one's own may have no seed: then the keys are those of seed 0
        seed=int(seed if isinstance(seed, numbers.Integral) else getattr(seed, "seed", 0)),
        constrained=bounds is not None or project is not None,
        max_queries=max_queries,
        max_steps=max_steps,
        max_time=max_time,
        target=target,
        stagnation=stagnation,
    )
    try:
        with progress_display(progress, max_queries, max_steps, max_time) as show:
            status = _loop(run, callback, show)
            run.settle(status)
    except KeyboardInterrupt:
        status = "interrupted"
    except Exception as error:
        # Whatever ends the run, what was reached goes with it.
        with contextlib.suppress(Exception):
            error.result = run.result("failed", f"{type(error).__name__}: {error}")  # type: ignore[attr-defined]
            error.add_note(
                f"zomopi: after {run.optimizer.nit} steps and {objective.calls} evaluations; "
                "the attribute `result` of this exception holds what was reached"
            )
        raise
    return run.result(status)


def _loop(run: _Run, callback: Callable[[Iteration], Any] | None, show: Callable[..., Any]) -> str:
    if run.checks:
        run.best.offer(run.evaluate_at(run.optimizer.x), 0, run.optimizer.x)
    while (status := run.why_stop()) is None:
        iteration = run.step()
        show(iteration)
        if callback is not None:
            try:
                stop = callback(iteration) is True
            except StopIteration:
                stop = True
            if stop:
                return "callback"
    return status
