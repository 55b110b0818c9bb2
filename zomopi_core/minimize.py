"""The loop: budget, stopping, callbacks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any

import numpy as np

from . import _arrays, errors
from ._checks import check_count, finite, flag, positive
from ._progress import progress_display
from .catalog import find_method, tuned_method
from .constraints import Projection
from .costs import StepCosts, spare_queries, step_costs, steps_paid_for
from .failures import Failures, Retry, left_out
from .journal import Journal, Recorder, as_journal
from .method import Method
from .objective import Objective, check_params
from .optimizer import Optimizer
from .outcome import result_of, settle
from .result import Iteration, Result
from .run import Run, seed_of_keys
from .sampling import Sampler
from .stopping import Rules
from .update import Schedule
from .workers import check_workers


def minimize(
    fun: Callable[..., Any],
    x0: Any,
    *,
    method: str | Method = "zo-mopi",
    learning_rate: float | Schedule | str = "auto",
    smoothing: float | str = "auto",
    spectral_rank: int | str | None = "auto",
    gradient: Callable[..., Any] | None = None,
    max_queries: int | None = None,
    max_steps: int | None = None,
    max_time: float | None = None,
    target: float | None = None,
    stagnation: int | None = None,
    seed: int | Sampler = 0,
    vectorized: bool = False,
    structured: bool = False,
    reuse_buffers: bool = False,
    bounds: Any = None,
    project: Projection | None = None,
    on_failure: str | Retry | Mapping[str, Any] | None = None,
    timeout: float | None = None,
    workers: int | Executor | None = None,
    failure_limit: int | None = 1000,
    guard: bool = True,
    callback: Callable[[Iteration], Any] | None = None,
    progress: bool = False,
    report_every: int = 1,
    journal: str | os.PathLike[str] | Journal | None = None,
) -> Result:
    """Minimise a function of matrices by calling it, without derivatives.

    Parameters
    ----------
    fun : callable
        ``fun(x) -> float``, with `x` in the form of `x0`: a number, or a 0-d array that may stay
        on its device. If it has a parameter named `key`, it also gets ``key=``, an integer below
        2**31 that is the same for all evaluations of a step and differs between steps: seed the
        noise of a simulator or choose a minibatch with it. Methods that ask for the loss of all
        data in between (`mezo_svrg`) need this parameter; there, and where the result is
        checked, they pass ``key=None``.
    x0 : array or dict of arrays
        Where to start. Real floating-point, of NumPy, CuPy, Torch, JAX or another library that
        follows the array API standard; it is not changed.
    method : str or Method
        A name from `methods`, or what a function of the catalogue returns.
    learning_rate, smoothing, spectral_rank : "auto", or what the method takes, optional
        Options of a method given by its name; a `Method` has its own. By default the learning
        rate and the smoothing are measured during the run, whatever the method's paper says
        (`zomopi_core.tuning`), and so is the spectral rank of a method that has one. A
        first-order method keeps its own learning rate unless another is given.
    gradient : callable, optional
        ``gradient(x)`` returns dF/dX in the form of `x`: for first-order methods, and only for
        them. A step then evaluates it once, and `fun` once at the iterate; only the latter are
        counted as queries. It gets `key` like `fun` if it has such a parameter.
    max_queries : int, optional
        Most evaluations of `fun`, every one counted; one of `max_queries`, `max_steps` and
        `max_time` must be given. One is spent at the end on the best point seen, and from ten
        steps on two more on `x0` and on the last iterate.
    max_steps : int, optional
        Most steps; the three evaluations beside them are made whatever their number.
    max_time : float, optional
        Seconds after which no new step begins.
    target : float, optional
        Loss at which to stop, confirmed by a second evaluation.
    stagnation : int, optional
        Number of steps in a row without a new lowest loss after which to stop.
    seed : int or Sampler
        Key of all random numbers.
    vectorized : bool
        Whether `fun` takes a stack of candidates (q, m, n), or a dict of stacks, and returns q
        losses. q is the number of a step's evaluations, at a line search with those along the
        line, 1 for those beside the steps, and that of points which are evaluated again.
    structured : bool
        Whether `fun` takes a `PerturbedMatrix` P in the place of each array with two axes. It
        supports ``P @ W``, ``W @ P``, ``P.T`` and rows; products with matrices that stay the same
        cost little more for all points of a step than for one.
    reuse_buffers : bool
        Whether all points are made in the same memory, mostly one of the other, which saves
        allocating it and copying X for each: `fun` must not keep the array that it gets or change
        it (NumPy arrays are read-only), nor a callback keep the iterate.
    bounds : (low, high), optional
        Applied to the iterate after each step: numbers, arrays, or dicts of them, None leaves a
        side open. The points at which `fun` is evaluated may lie outside by a probe;
        the result does not: a step under `bounds` or `project` also evaluates `fun` at the
        iterate.
    project : callable, optional
        Applied to the iterate after each step, after `bounds`.
    on_failure : {"auto", "skip", "retry", "raise"}, Retry or dict, optional
        What to do when a loss or a gradient is not finite, its function raises an exception or
        returns no number, or a call takes longer than `timeout`: ``"auto"`` evaluates the point
        again as long as that has helped by and large, and leaves it out otherwise; ``"skip"``
        leaves it out, ``"retry"`` or a `Retry` evaluates it again so many times, and ``"raise"``
        ends the run. A dict has the keys ``"non-finite"`` (default ``"auto"``), ``"exception"``
        (default ``"raise"``) and ``"timeout"`` (default ``"auto"``). An exception carries what was
        reached in its attribute ``result``.
    timeout : float, optional
        Seconds after which a call of `fun` has failed. Without `workers` it is made in a thread
        of its own, and goes on in the background if it never ends; a worker is ended.
    workers : int or Executor, optional
        Number of processes that evaluate the points of a step at a time, or anything with the
        `submit` of `concurrent.futures.Executor`. The bits are those of one by one. A process
        that dies is replaced and its point evaluated again, once. Where the parameters take
        256 KiB or more, processes hold them, and are sent losses and numbers of points.
    failure_limit : int, optional
        Number of evaluations that fail in a row after which the run stops, with status
        ``"failures"``; None for no limit.
    guard : bool
        Whether to go back to the best point, with a quarter of the learning rate and without
        momentum, when the losses stay far above the best one: for 50 steps by ten times what F
        had fallen, without coming down. Only for a learning rate that is not tuned; tuning
        retreats by itself.
    callback : callable, optional
        Called with an `Iteration` after each step; returning True, or raising StopIteration,
        stops the run.
    progress : bool
        Whether to show a progress bar (extra ``cli``).
    report_every : int
        Number of steps from one look at the losses to the next. Above 1, losses that are arrays
        stay on their device in between, and those of several steps are fetched as one array: no
        step waits for the device. The iterates are the same and the history is complete. But
        points of the steps in between cannot become the best one; target, stagnation and guard
        are looked at, and the callback is called, at reports only: at every `report_every`-th
        step, at steps whose losses the tuning needs or at which an exception was left out, and
        at the last one of a budget. A loss that is not finite is left out, not evaluated again.
        Not with `journal`, `workers`, `gradient`, `bounds` or `project`, which need each step's
        losses at once.
    journal : str, path or Journal, optional
        File in which the run is recorded, so that `resume` goes on after a crash and `replay`
        gives the parameters of any step. It must not exist.

    Returns
    -------
    Result

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be used; the message names it and the remedy.

    Notes
    -----
    The evaluations that tuning takes are part of the budget: seven at the start for the noise of
    `fun`, some more where it is noisy, and three to seven along a line every 80 or more.

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
        ("report_every", report_every),
        ("failure_limit", failure_limit),
    ):
        if count is not None:
            check_count(name, count)
    for name, seconds in (("max_time", max_time), ("timeout", timeout)):
        if seconds is not None:
            positive(name, seconds)
    check_workers(workers, vectorized or structured, reuse_buffers, timeout)
    if target is not None:
        target = finite("target", target)
    flags = {
        "vectorized": vectorized,
        "structured": structured,
        "progress": progress,
        "guard": guard,
    }
    for name, value in flags.items():
        flag(name, value)
    for name, function in (("callback", callback), ("gradient", gradient)):
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be callable, got {type(function).__name__}")
    paper = find_method(method)
    options = learning_rate, smoothing, spectral_rank
    method = tuned_method(method, *options)
    if gradient is None and method.estimator is None:
        raise errors.needs_gradient(method.name)
    if gradient is not None and method.estimator is not None:
        raise errors.takes_no_gradient(method.name)
    constrained = bounds is not None or project is not None
    objective = Objective(fun, vectorized=vectorized, structured=structured)
    if method.takes_full_batches and not objective.takes_key:
        raise errors.needs_key(method.name)
    costs = step_costs(method, constrained)
    steps = _steps(max_queries, max_steps, costs)
    if steps is not None and steps < _WORTH_TUNING and options == ("auto",) * 3:
        method, costs = paper, step_costs(paper, constrained)
        steps = _steps(max_queries, max_steps, costs)
    if max_queries is not None and max_queries < costs.of(1):
        raise errors.budget_below_step(max_queries, costs.of(1))
    if steps is not None:
        method = method.with_horizon(steps)
    if report_every > 1:
        needs = {
            "journal": journal is not None,
            "workers": workers is not None,
            "gradient": gradient is not None,
            "bounds or project": constrained,
        }
        for name, given in needs.items():
            if given:
                raise errors.cannot_report_later(name, report_every)
        on_failure = left_out(on_failure, report_every)
    failures = Failures(on_failure, failure_limit)
    rules = Rules(max_queries, max_steps, max_time, target, stagnation)
    journal = as_journal(journal)
    if journal is not None:
        if gradient is not None:
            raise errors.journal_of_gradients()
        x0 = check_params(x0)
    optimizer = Optimizer(
        x0,
        method=method,
        seed=seed,
        bounds=bounds,
        project=project,
        reuse_buffers=reuse_buffers,
        samples=objective.takes_key,
    )
    recorder = None
    if journal is not None:
        settings = {
            **rules._asdict(),
            "vectorized": vectorized,
            "structured": structured,
            "reuse_buffers": reuse_buffers,
            "samples": objective.takes_key,
            "on_failure": failures.as_json(),
            "timeout": timeout,
            "failure_limit": failure_limit,
            "guard": guard,
        }
        sampler = optimizer.state.random.sampler
        recorder = Recorder.start(
            journal, "minimize", x0, optimizer.method, sampler, bounds, project, settings
        )
    run = Run(
        optimizer,
        objective,
        failures,
        gradient=gradient,
        seed=seed_of_keys(seed),
        constrained=constrained,
        rules=rules,
        guarded=guard,
        report_every=report_every,
        timeout=timeout,
        workers=workers,
        recorder=recorder,
    )
    return drive(run, callback, progress)


def drive(run: Run, callback: Callable[[Iteration], Any] | None, progress: bool) -> Result:
    """Take steps until a rule ends the run, and return what was reached."""
    rules = run.rules
    limits = rules.max_queries, rules.max_steps, rules.max_time
    try:
        with progress_display(progress, *limits) as show:
            status = _loop(run, callback, show)
            run.report()
            settle(run, status)
    except KeyboardInterrupt:
        status = "interrupted"
    except Exception as error:
        # Whatever ends the run, what was reached goes with it.
        with contextlib.suppress(Exception):
            error.result = result_of(run, "failed", f"{type(error).__name__}: {error}")  # type: ignore[attr-defined]
            error.add_note(
                f"zomopi: after {run.optimizer.nit} steps and {run.objective.calls} evaluations; "
                "the attribute `result` of this exception holds what was reached"
            )
        raise
    finally:
        if run.parallel is not None:
            run.parallel.close()
        if run.recorder is not None:
            run.recorder.close()
    return result_of(run, status)


# Steps below which searching for a learning rate leaves too few to use it.
_WORTH_TUNING = 16


def _steps(max_queries: int | None, max_steps: int | None, costs: StepCosts) -> int | None:
    """Return the number of steps that the budget pays for; None if only time limits the run."""
    if max_queries is None:
        return max_steps
    return steps_paid_for(max_queries - spare_queries(max_queries, costs), max_steps, costs)


def _loop(
    run: Run,
    callback: Callable[[Iteration], Any] | None,
    show: Callable[[Iteration], None] | None,
) -> str:
    recorder, optimizer = run.recorder, run.optimizer
    run.begin()
    step = run.step if run.gradient is None else run.gradient_step
    while (status := run.why_stop()) is None:
        step()
        if recorder is not None:
            if recorder.replays:  # told in the life of the run that recorded it
                continue
            recorder.after_step(optimizer.nit, run.state)
        if not run.reported:
            continue
        if show is not None:
            show(run.iteration())
        if callback is not None:
            try:
                stop = _wants_to_stop(callback(run.iteration()))
            except StopIteration:
                stop = True
            if stop:
                return run.stop("callback")
    return status


def _wants_to_stop(answer: Any) -> bool:
    """Tell whether a callback returned True, of Python or of an array library."""
    if isinstance(answer, bool | np.bool_):
        return bool(answer)
    truth = _arrays.is_array(answer) and answer.shape == () and "bool" in str(answer.dtype)
    return truth and bool(answer)
