"""Go on with a recorded run, or compute its parameters again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NamedTuple

from . import _arrays, errors
from ._checks import check_count, positive
from ._header import (
    bounds_digest,
    check_driver,
    check_header,
    check_start,
    check_surroundings,
    in_order,
    recorded_like,
    recorded_method,
    recorded_sampler,
)
from ._journal_file import JournalFile, read_journal
from ._snapshots import SnapshotFiles
from ._tree import shapes
from .constraints import Projection
from .failures import Failures
from .journal import Journal, Recorder, needed_journal
from .method import Method, leaves_of, like_params
from .minimize import drive
from .objective import Objective, check_callable, check_params
from .optimizer import Optimizer
from .point import Point
from .result import Iteration, Result
from .run import Run, seed_of_keys
from .sampling import Sampler
from .stopping import Rules
from .workers import check_workers


def resume(
    journal: str | os.PathLike[str] | Journal,
    fun: Callable[..., Any],
    *,
    x0: Any = None,
    method: Method | None = None,
    seed: Sampler | None = None,
    bounds: Any = None,
    project: Projection | None = None,
    workers: int | Executor | None = None,
    callback: Callable[[Iteration], Any] | None = None,
    progress: bool = False,
    exact: bool = True,
) -> Result:
    """Go on with a run of `minimize` from its journal, to the bits that it would have reached.

    Parameters
    ----------
    journal : str, path or Journal
        What `minimize` was given as `journal`; a `Journal` may have other options.
    fun : callable
        The function, as it was. What is recorded is not evaluated again.
    x0 : array or dict of arrays, optional
        The start, needed where the journal has no snapshots, and compared with what is recorded.
    method, seed : optional
        Needed where they held code of your own: a part or schedule of a method, a sampler.
    bounds, project : optional
        Needed if the run had a projection; bounds only where the journal has no snapshots.
    workers, callback, progress
        As in `minimize`. The callback is called for the last recorded step, in case it was not
        before, and for the new ones.
    exact : bool
        Whether to refuse a machine, a number of threads or a release on which the same steps
        would be rounded otherwise.

    Returns
    -------
    Result
        Of the whole run; that of a finished run costs no evaluation.

    Raises
    ------
    FileNotFoundError
        If there is no journal.
    JournalError
        If it cannot be used, or not with these arguments; it is left as it is.

    Examples
    --------
    >>> import tempfile, os
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> folder = tempfile.TemporaryDirectory()
    >>> journal = os.path.join(folder.name, "run.zomopi")
    >>> def loss(x):
    ...     return np.sum((x - 1.0) ** 2)
    >>> result = zo.minimize(loss, np.zeros((4, 3)), max_queries=400, journal=journal)
    >>> bool(zo.resume(journal, loss).fun == result.fun)
    True
    >>> bool(np.all(zo.replay(journal) == result.x_last))
    True
    >>> folder.cleanup()
    """
    config = needed_journal(journal)
    check_callable(fun)
    given = _Given(x0, method, seed, bounds, project)
    file = JournalFile(config._file, durable=config.durable)
    try:
        check_driver(file.header, "minimize")
        saved = _Saved(file.path, file.header, given, exact)
        run = saved.run(fun, workers)
        row = saved.restore(run, sum(1 for _ in file.rows()))
        like = leaves_of(run.optimizer.x)[0]
        run.recorder = Recorder(config, file, file.header["run"], like, file.rows(), row)
    except BaseException:
        file.close()
        raise
    return drive(run, callback, progress)


def resume_optimizer(
    journal: str | os.PathLike[str] | Journal,
    *,
    x0: Any,
    method: Method | None,
    seed: Sampler | None,
    bounds: Any,
    project: Projection | None,
    exact: bool,
) -> Optimizer:
    """Do the work of `Optimizer.resume`."""
    config = needed_journal(journal)
    given = _Given(x0, method, seed, bounds, project)
    file = JournalFile(config._file, durable=config.durable)
    try:
        check_driver(file.header, "optimizer")
        saved = _Saved(file.path, file.header, given, exact)
        optimizer = saved.optimizer()
        row = saved.restore(optimizer, sum(1 for _ in file.rows()))
        like = leaves_of(optimizer.x)[0]
        recorder = Recorder(config, file, file.header["run"], like, file.rows(), row)
        recorder.catch_up(optimizer)
        optimizer._recorder = recorder
    except BaseException:
        file.close()
        raise
    return optimizer


def replay(
    journal: str | os.PathLike[str],
    x0: Any = None,
    *,
    step: int | None = None,
    method: Method | None = None,
    seed: Sampler | None = None,
    bounds: Any = None,
    project: Projection | None = None,
    exact: bool = True,
) -> Any:
    """Compute the parameters of a recorded run again, without evaluating its function.

    Parameters
    ----------
    journal : str or path
        It may be that of a run which is still going on.
    x0 : array or dict of arrays, optional
        The start; needed where there are no snapshots beside the journal.
    step : int, optional
        Number of steps after which the parameters are wanted; by default all that are recorded.
    method, seed, bounds, project, exact : optional
        As in `resume`.

    Returns
    -------
    array or dict of arrays
        The iterate, with the bits that it had in the run.

    Raises
    ------
    FileNotFoundError
        If there is no journal.
    JournalError
        If it cannot be used, or not with these arguments.
    ValueError
        If fewer steps are recorded.
    """
    config = needed_journal(journal)
    if step is not None:
        check_count("step", step, 0)
    own = _Given(x0, method, seed, bounds, project)
    header, rows = read_journal(config._file)
    saved = _Saved(config._file, header, own, exact)
    if step is not None and step > sum(row.kind == "" for _, row in rows):
        raise errors.not_a_number("step", step, "that of a recorded step")
    driver: Run | Optimizer
    driver = saved.run(_unrecorded) if header["driver"] == "minimize" else saved.optimizer()
    at = saved.restore(driver, len(rows), step)
    optimizer = driver if isinstance(driver, Optimizer) else driver.optimizer
    like = leaves_of(optimizer.x)[0]
    recorder = Recorder(config, None, header["run"], like, iter(rows), at)
    if isinstance(driver, Optimizer):
        recorder.catch_up(driver, step)
    else:
        driver.recorder = recorder
        with contextlib.suppress(_EndOfRecordError):
            _catch_up(driver, recorder, step)
    return like_params(optimizer.x, [_arrays.copy(x) for x in leaves_of(optimizer.x)])


def _catch_up(run: Run, recorder: Recorder, step: int | None) -> None:
    run.begin()
    while run.optimizer.nit != step and recorder.replays and run.why_stop() is None:
        run.step()


@contextlib.contextmanager
def _own_words(what: str = "header") -> Iterator[None]:
    """Turn what a wrong header leads to, wherever it is noticed, into an error that says so."""
    try:
        yield
    except (errors.JournalError, OSError, ImportError):
        raise
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise errors.other_run(f"its {what} cannot be used ({error})") from error
    except (ArithmeticError, MemoryError, RecursionError) as error:
        raise errors.other_run(f"its {what} cannot be used ({error})") from error


class _EndOfRecordError(BaseException):
    """The function was called where nothing is recorded; no failure that a policy may skip."""


def _unrecorded(x: Any) -> float:
    raise _EndOfRecordError


class _Given(NamedTuple):
    """What the caller passes beside the journal."""

    x0: Any
    method: Method | None
    seed: Sampler | None
    bounds: Any
    project: Projection | None


class _Saved:
    """A recorded run, made again from its header and its start, after all checks."""

    def __init__(self, path: Path, header: dict[str, Any], given: _Given, exact: bool) -> None:
        check_header(header)
        self._header, self._project = header, given.project
        self._files = SnapshotFiles(path, header["run"])
        with _own_words() if given.x0 is None else contextlib.nullcontext():
            self._start, self._bounds = self._begin(given)
        check_start(header, self._start)
        if bounds_digest(self._bounds) != header["bounds"]:
            raise errors.other_run("its bounds were others")
        if header["project"] != (given.project is not None):
            what = "it had a projection" if header["project"] else "it had no projection"
            raise errors.other_run(f"{what}; pass project= as it was")
        self._like = leaves_of(self._start)[0]
        check_surroundings(header, self._like, exact=exact)
        with _own_words():
            self._method = recorded_method(header, given.method)
            self._sampler = recorded_sampler(header, given.seed, self._like)

    def _begin(self, given: _Given) -> tuple[Any, Any]:
        """Return x0 and the bounds, of the caller or from the file beside the journal."""
        if given.x0 is not None:
            start = check_params(given.x0)
            if given.bounds is not None or self._header["bounds"] is None:
                return start, given.bounds
            stored = self._stored(leaves_of(start)[0])
            return start, stored["bounds"]
        stored = self._stored(recorded_like(self._header))
        bounds = stored["bounds"] if given.bounds is None else given.bounds
        return in_order(self._header, stored["x0"]), bounds

    def _stored(self, like: Any) -> dict[str, Any]:
        name = self._files.name(None)
        try:
            tree = self._files.load(None, like, None).tree
            if not isinstance(tree, dict) or set(tree) != {"x0", "bounds"}:
                raise ValueError("it does not hold a start")
        except FileNotFoundError:
            raise errors.needs_start(name, "it is not there") from None
        except (ValueError, OSError) as error:
            raise errors.needs_start(name, error) from error
        return tree

    def optimizer(self) -> Optimizer:
        """Return the optimizer as it was at the start."""
        with _own_words():
            rules = self._header["rules"]
            optimizer = Optimizer(
                self._start,
                method=self._method,
                seed=self._sampler,
                bounds=self._bounds,
                project=self._project,
                reuse_buffers=rules.get("reuse_buffers") is True,
                samples=rules.get("samples") is True,
            )
            point = optimizer._point
            optimizer.ask()  # what a wrong number in the method leads to shows here
            optimizer._restore(point)
        return optimizer

    def run(self, fun: Callable[..., Any], workers: Any = None) -> Run:
        """Return the run as it was at the start."""
        settings = self._header["rules"]
        with _own_words():
            rules = Rules(*(settings[name] for name in Rules._fields))
            if not all(type(r) in (int, float, type(None)) for r in rules):
                raise TypeError("a rule is no number")
            objective = Objective(
                fun,
                vectorized=settings["vectorized"] is True,
                structured=settings["structured"] is True,
            )
            failures = Failures(settings["on_failure"], settings["failure_limit"])
            if failures.limit is not None:
                check_count("failure_limit", failures.limit)
            timeout = settings["timeout"]
            if timeout is not None:
                positive("timeout", timeout)
        shared = settings["reuse_buffers"] is True
        stacked = objective.vectorized or objective.structured
        check_workers(workers, stacked, shared, timeout)
        optimizer = self.optimizer()
        return Run(
            optimizer,
            objective,
            failures,
            gradient=None,
            seed=seed_of_keys(self._sampler),
            constrained=self._header["bounds"] is not None or self._project is not None,
            rules=rules,
            guarded=settings["guard"] is True,
            timeout=timeout,
            workers=workers,
        )

    def restore(self, driver: Run | Optimizer, rows: int, step: int | None = None) -> int:
        """Go to the latest snapshot, and return the number of rows that it holds."""
        optimizer = driver if isinstance(driver, Optimizer) else driver.optimizer
        for found in self._files.usable(rows, step, self._like, optimizer.state.random):
            tree = found.tree
            point = tree.get("point") if isinstance(tree, dict) else None
            if not isinstance(point, Point) or not _same_form(point, optimizer._point):
                continue
            with _own_words("snapshot"):
                if isinstance(driver, Optimizer):
                    driver._restore(point)
                else:
                    driver.restore(tree)
            return found.row
        return 0


def _same_form(point: Point, like: Point) -> bool:
    parts = [shapes((p.params, p.state.leaves)) for p in (point, like)]
    same_best = point.best is None or shapes(point.best) == shapes(like.params)
    return parts[0] == parts[1] and same_best and type(point.tuning) is type(like.tuning)
