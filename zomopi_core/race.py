"""The race: methods and outsiders on the same problems, with equal budgets of evaluations."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import _arrays, errors
from ._checks import check_count
from ._race_entries import Entry, entries
from ._race_file import FORMAT, Journal, RaceRun
from ._race_oracle import BudgetSpent, Oracle
from ._race_progress import RaceProgress, race_progress
from .method import leaves_of, like_params
from .race_result import RaceResult

#: who races if nobody is named: the methods whose steps have a size of their own
METHODS = ("zo_mopi", "zo_muon")
# the outsiders that join them where their packages are installed
OUTSIDERS = ("cma", "scipy-lbfgsb")


@dataclass(frozen=True)
class Course:
    """A problem by its name, as an object, or as a function of the seed."""

    given: Any

    def build(self, seed: int, backend: str, device: str | None) -> Any:
        """Return the problem of a seed."""
        if isinstance(self.given, str):
            xp, found = _arrays.backend(backend, device)
            return _problems().make(self.given, xp, device=found, seed=seed)
        problem = self.given if _is_problem(self.given) else self.given(seed)
        if not _is_problem(problem):
            raise errors.wrong_problem(problem)
        return problem


@dataclass(frozen=True)
class Job:
    """One run of the race, as another process gets it."""

    course: Course
    entry: Entry
    seed: int
    budget: int
    backend: str
    device: str | None

    def run(
        self,
        problem: Any,
        show: Callable[[int, float], None] | None = None,
        interrupts: Sequence[int] = (),
    ) -> RaceRun:
        """Run the entry; what it raises is recorded."""
        oracle = Oracle(problem, self.budget, self.seed, show, interrupts)
        answer, error = None, None
        x0 = like_params(problem.x0, [_arrays.copy(x) for x in leaves_of(problem.x0)])
        try:
            answer = self.entry.solver(oracle, x0, self.budget, self.seed)
        except BudgetSpent:
            pass
        except Exception as failure:
            error = f"{type(failure).__name__}: {failure}"
        outcome = oracle.finish(answer)
        return RaceRun(
            problem=problem.name,
            method=self.entry.label,
            group=self.entry.group,
            seed=self.seed,
            settings=self.entry.settings,
            definition=_definition(problem, outcome.start),
            unknowns=sum(map(_arrays.size, leaves_of(problem.x0))),
            target=outcome.target,
            start=outcome.start,
            final=outcome.final,
            queries=outcome.queries,
            queries_to_target=outcome.queries_to_target,
            seconds=outcome.seconds,
            error=error,
            curve=outcome.curve,
        )


def race(
    problems: Any = None,
    methods: Any = None,
    *,
    budget: int = 10_000,
    seeds: int | Sequence[int] = 3,
    file: str | Path | None = None,
    backend: str = "numpy",
    device: str | None = None,
    workers: int = 1,
    progress: bool = False,
) -> RaceResult:
    """Race methods on problems, with equal budgets of evaluations, over several seeds.

    Every evaluation counts: baselines, line searches, calibration. Nobody sees anything but the
    losses that it asks for.

    Parameters
    ----------
    problems : str, problem, callable, or sequence of these, optional
        Names from `zomopi_core.problems`; objects with `name`, `x0` and `fun`, and where they
        have them `target`, `noisy` and `exact` (the loss without noise, for scoring); or
        ``problem(seed)`` that returns such an object. By default a few small problems.
    methods : str, Method, callable, or sequence or dict of these, optional
        Names of methods that need no gradient, with options as in
        ``"zo_muon:learning_rate=0.01:rank=32"``. ``schedule=linear`` (or ``cosine``) lets the
        learning rates fall to zero over the budget. Several values, as in
        ``learning_rate=0.001/0.01/0.1``, make a grid, of which tables show the best on each
        problem. Names of outsiders (`zomopi_adapters.outsiders.names`, extra ``bench``). Methods.
        Or any ``solver(fun, x0, max_queries, seed)`` that calls `fun`; it may return the point it
        found, and say meanwhile which it would with ``fun.recommend(x)``. Keys of a dict are
        names for the table. By default `zo_mopi`, `zo_muon`, and two outsiders if installed.
    budget : int
        Evaluations of the function for each run.
    seeds : int or sequence of int
        Their number, or the seeds themselves; each is that of the problem and of the method.
    file : str or Path, optional
        Where to keep the results. Runs that it already holds are not run again, so that an
        interrupted race goes on where it stopped, and others are added.
    backend, device : str
        Array library, and device, of problems that are named.
    workers : int
        Runs at a time; above 1 each in a process of its own.
    progress : bool
        Whether to show progress (extra ``cli``).

    Returns
    -------
    RaceResult
        Printed, a table for each problem. After Ctrl-C it holds the runs that were finished.

    Raises
    ------
    TypeError, ValueError, ImportError
        Before any run, if something cannot be used, or `file` holds a race with another budget,
        backend, release, problem or method of the same name.

    Notes
    -----
    The loss after some queries is that of the point that a solver would return then, without
    noise: the best it has evaluated or, if the function is noisy, the one it recommends (of
    methods of zomopi, the iterate, and at the end the result). The start counts as seen.

    An exception in a solver ends its run, which is marked as failed and keeps what it reached.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> class Ones:
    ...     name, x0, target = "ones", np.zeros((4, 3)), 0.1
    ...     def fun(self, x):
    ...         return np.sum((x - 1.0) ** 2)
    >>> def random_search(fun, x0, max_queries, seed):
    ...     generator = np.random.default_rng(seed)
    ...     for _ in range(max_queries):
    ...         fun(x0 + generator.standard_normal(x0.shape))
    >>> result = zo.race(Ones(), ["zo_mopi", random_search], budget=2000, seeds=3)
    >>> [(row.method, row.reached) for row in result.table()]
    [('zo_mopi', 3), ('random_search', 0)]
    """
    check_count("budget", budget)
    check_count("workers", workers)
    chosen = _seeds(seeds)
    courses = _courses(problems)
    found = entries(_default_methods() if methods is None else methods)
    header = _header(budget, backend, device)
    if file is not None and not Path(file).name:
        raise errors.no_file_name(file, "file")
    journal = Journal(None if file is None else Path(file), header)
    jobs = list(_jobs(courses, found, chosen, budget, backend, device, journal.runs))
    if workers > 1:
        _check_sendable(jobs)
    interrupted = False
    with race_progress(progress, len(jobs), budget) as show, _interrupts_noted() as noted:
        journal.begin()
        try:
            runs = _at_once(jobs, workers, show) if workers > 1 else _in_turn(jobs, show, noted)
            for run in runs:
                journal.add(run)
                interrupted = bool(noted)
                if interrupted:
                    break
        except KeyboardInterrupt:
            interrupted = True
    return RaceResult(budget, journal.runs, header, interrupted)


@contextlib.contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Note each Ctrl-C beside raising it, for it may be raised where somebody swallows it."""
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield noted
        return

    def note(number: int, frame: Any) -> None:
        noted.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _in_turn(jobs: list[Job], show: RaceProgress, interrupts: Sequence[int]) -> Iterator[RaceRun]:
    made: Any = None
    for job in jobs:
        if made is None or made[:2] != (job.course, job.seed):
            made = job.course, job.seed, job.course.build(job.seed, job.backend, job.device)
        problem = made[2]
        shown = show.begin(problem.name, job.entry.label, job.seed)
        yield job.run(problem, shown, interrupts)
        show.end()


def _at_once(jobs: list[Job], workers: int, show: RaceProgress) -> Iterator[RaceRun]:
    import multiprocessing

    # A fork would copy the threads' locks of array libraries, but not the threads.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers, initializer=_leave_interrupts_to_the_parent) as pool:
        for run in pool.imap_unordered(_run_job, jobs):
            show.begin(run.problem, run.method, run.seed)
            yield run
            show.end()


def _run_job(job: Job) -> RaceRun:
    return job.run(job.course.build(job.seed, job.backend, job.device))


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _check_sendable(jobs: list[Job]) -> None:
    for job in jobs:
        for what in (job.course, job.entry):
            try:
                pickle.dumps(what)
            except Exception as error:
                name = what.label if isinstance(what, Entry) else repr(what.given)[:60]
                raise errors.cannot_send(name, error) from error


def _jobs(
    courses: list[Course],
    found: list[Entry],
    seeds: list[int],
    budget: int,
    backend: str,
    device: str | None,
    finished: list[RaceRun],
) -> Iterator[Job]:
    """Yield the runs that are not finished; raise if a finished one is of something else."""
    known = {(run.problem, run.method, run.seed): run for run in finished}
    defined = {(run.problem, run.seed): run.definition for run in finished}
    names = set()
    for course in courses:
        name = None
        for seed in seeds:
            problem = course.build(seed, backend, device)
            if name is None:
                name = problem.name
                if name in names:
                    raise errors.same_label("problems", name)
                names.add(name)
            if (name, seed) in defined:
                start = Oracle(problem, 1).finish().start
                definition = _definition(problem, start)
                if definition != defined[name, seed]:
                    what = f"problem {name} (seed {seed})"
                    raise errors.other_race("file", what, defined[name, seed], definition)
            for entry in found:
                done = known.get((name, entry.label, seed))
                if done is None:
                    yield Job(course, entry, seed, budget, backend, device)
                elif done.settings != entry.settings:
                    raise errors.other_race(
                        "file", f"method {entry.label}", done.settings, entry.settings
                    )


def _definition(problem: Any, start: float) -> str:
    """Return a digest by which two problems of one name are told apart."""
    arrays = [(tuple(x.shape), _arrays.dtype_name(x)) for x in leaves_of(problem.x0)]
    target = getattr(problem, "target", None)
    # Four digits of the losses: the last ones differ between machines.
    parts = [
        problem.name,
        repr(arrays),
        "" if target is None else f"{float(target):.3e}",
        str(bool(getattr(problem, "noisy", False))),
        f"{start:.3e}",
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, Iterable):
        chosen = list(seeds)
        for seed in chosen:
            check_count("seeds", seed, 0)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"seeds must be different numbers, at least one, got {chosen}")
        return [int(seed) for seed in chosen]
    check_count("seeds", seeds)
    return list(range(seeds))


def _problems() -> Any:
    return importlib.import_module("zomopi_core.problems")


def _courses(problems: Any) -> list[Course]:
    if problems is None:
        problems = default_problems()
    elif isinstance(problems, str):
        problems = problems.replace(",", " ").split()
    elif _is_problem(problems) or not isinstance(problems, Iterable):
        problems = [problems]
    courses = [Course(problem) for problem in problems]
    if not courses:
        raise ValueError("problems names nothing to race on; pass at least one problem")
    for course in courses:
        if isinstance(course.given, str):
            if course.given not in _problems().names():
                raise errors.unknown_name("problems", course.given, _problems().names())
        elif not _is_problem(course.given) and not callable(course.given):
            raise errors.wrong_problem(course.given)
    return courses


def _is_problem(value: Any) -> bool:
    return not isinstance(value, type) and all(
        hasattr(value, name) for name in ("name", "x0", "fun")
    )


def default_problems() -> list[str]:
    """Return the names of the problems of a race for which none are named."""
    return [name for name in _problems().names() if name in DEFAULT_PROBLEMS]


#: small, and of different kinds
DEFAULT_PROBLEMS = ("digits", "sensing", "quadratic", "gate")


def _default_methods() -> list[str]:
    names = list(METHODS)
    for name in OUTSIDERS:
        with contextlib.suppress(ImportError):
            entries(name)
            names.append(name)
    return names


def _header(budget: int, backend: str, device: str | None) -> dict[str, Any]:
    versions = {"python": sys.version.split()[0]}
    for package in _arrays.LIBRARIES.values():
        if package in sys.modules:
            versions[package] = sys.modules[package].__version__
    # none where it is run from a source tree that was not installed
    own = _arrays.installed_version("zomopi") or "not installed"
    return {
        "format": FORMAT,
        "budget": budget,
        "backend": backend,
        "device": device,
        "zomopi": own,
        "versions": versions,
    }
