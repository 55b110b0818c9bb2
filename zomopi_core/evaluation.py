"""The evaluations of a step: one after the other or in parallel, with time limits."""

from __future__ import annotations

import contextlib
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from . import _arrays, errors
from ._arrays import Array
from .failures import Failures
from .journal import SLOW_SECONDS, Recorder
from .losses import join_losses, scalar_loss, stack_losses
from .objective import Objective


class Parallel(Protocol):
    """Evaluates several points at a time."""

    def start(self, number: int, point: Any, index: int | None, key: int | None) -> None:
        """Begin the evaluation of a point, under a number by which its end is told."""

    def finished(self) -> list[tuple[int, Any, BaseException | None]]:
        """Wait for evaluations to end; return their numbers, losses and errors."""

    def discard(self) -> None:
        """Forget what is under way."""

    def advance(self, losses: Array) -> None:
        """Learn that the optimizer has taken a step from these losses."""

    def renew(self) -> None:
        """Learn that the optimizer changed without a step."""

    def close(self) -> None:
        """End what was begun for these evaluations."""


class Evaluator:
    """Calls a function at points, one after the other or in parallel; takes what it raises.

    Parameters
    ----------
    objective : Objective
    failures : Failures
    timeout : float or None
        Seconds after which a call has failed.
    parallel : Parallel or None
        By default points are evaluated one after the other.
    """

    def __init__(
        self,
        objective: Objective,
        failures: Failures,
        *,
        timeout: float | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self._objective, self._failures = objective, failures
        self._parallel = parallel
        self._call: Callable[..., Any] = objective.call
        if timeout is not None and parallel is None:
            self._call = TimedCalls(objective.call, timeout)
        self._plain = timeout is None and parallel is None

    def __call__(
        self,
        points: Sequence[Any],
        places: Sequence[int],
        key: int | None,
        recorder: Recorder | None = None,
    ) -> Array:
        """Return the losses of some of the points, 1-d, NaN where there was an exception.

        Parameters
        ----------
        points : sequence
        places : sequence of int
            Numbers of those that are to be evaluated.
        key : int or None
            For a function that takes it.
        recorder : Recorder, optional
            Where slow evaluations are recorded one by one; what it knows is not evaluated.
        """
        objective = self._objective
        if self._plain and (recorder is None or objective.vectorized):
            return objective(points, places, key, self._failures.failed)
        if objective.vectorized:
            return self._stack(objective.prepared(points, places), places, key)
        known = {} if recorder is None else recorder.known()
        objective.calls += len(known)
        write = None if recorder is None else recorder.write_probe
        if self._parallel is not None:
            return self._at_once(self._parallel, points, places, key, known, write)
        losses: dict[int, Any] = known
        missing = [i for i in places if i not in known]
        prepared = iter(objective.prepared(points, missing))
        for i in missing:
            began = time.perf_counter()
            losses[i] = self._one(i, next(prepared), key)  # held by nobody when the next is made
            slow = time.perf_counter() - began >= SLOW_SECONDS
            # The last comes with its row, unless there will be repetitions before that.
            if write is not None and slow and (i != places[-1] or self._failures.pending):
                _write(write, i, losses[i])
        return join_losses([losses[i] for i in places])

    def _one(self, place: int, point: Any, key: int | None) -> Any:
        self._objective.calls += 1
        try:
            loss = self._call(point, key)
            return loss if type(loss) is float else scalar_loss(loss)
        except Exception as error:
            return self._failures.failed(place, error)

    def _stack(self, stack: Any, places: Sequence[int], key: int | None) -> Array:
        """Evaluate a stack of points, all of which fail together."""
        self._objective.calls += len(places)
        try:
            return self._objective.checked_stack(self._call(stack, key), len(places))
        except Exception as error:
            return stack_losses([self._failures.failed(i, error) for i in places])

    def _at_once(
        self,
        parallel: Parallel,
        points: Sequence[Any],
        places: Sequence[int],
        key: int | None,
        known: Mapping[int, Any],
        write: Callable[[int, Any], None] | None,
    ) -> Array:
        """Evaluate points at a time."""
        losses: dict[int, Any] = dict(known)
        began = time.perf_counter()
        addressable = hasattr(points, "params")  # those of a step have numbers, others come alone
        try:
            for i in places:
                if i not in known:
                    self._objective.calls += 1
                    parallel.start(i, points[i], i if addressable else None, key)
            while len(losses) < len(places):
                for i, loss, error in parallel.finished():
                    if error is None:
                        losses[i] = loss
                        slow = time.perf_counter() - began >= SLOW_SECONDS
                        last = len(losses) == len(places) and not self._failures.pending
                        if write is not None and slow and not last:
                            _write(write, i, loss)
                    elif isinstance(error, Exception):
                        losses[i] = self._failures.failed(i, error)
                    else:
                        raise error
        except BaseException:
            parallel.discard()
            raise
        return join_losses([losses[i] for i in places])


def _write(write: Callable[[int, Any], None], index: int, loss: Any) -> None:
    """Record a loss; what failed may be evaluated again by whoever resumes."""
    if isinstance(loss, float):
        if math.isfinite(loss):
            write(index, loss)
    elif bool(_arrays.namespace(loss).isfinite(loss)):
        write(index, loss)


class TimedCalls:
    """Calls a function in a thread of its own, and gives a call up after a time.

    Nothing can end a thread: a call that was given up goes on in the background, and the next one
    gets a new thread. Threads do not keep the interpreter from ending.
    """

    def __init__(self, function: Callable[..., Any], timeout: float) -> None:
        self._function, self._timeout = function, timeout
        self._calls: queue.SimpleQueue[Any] | None = None
        self._owner: threading.Thread | None = None

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns, or raise what it raises, or a timeout."""
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            thread = threading.Thread(target=_serve, args=(self._function, self._calls))
            thread.daemon = True
            thread.start()
        answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._calls.put((arguments, answer))
        try:
            value, error = answer.get(timeout=self._timeout)
        except queue.Empty:
            self._calls.put(None)  # ends the thread if the call ever ends
            self._calls = None
            raise errors.evaluation_timeout(self._timeout) from None
        except BaseException:  # Ctrl-C
            self._calls.put(None)
            self._calls = None
            raise
        if error is not None:
            raise error
        return value

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            if self._calls is not None:
                self._calls.put(None)


def _serve(function: Callable[..., Any], calls: queue.SimpleQueue[Any]) -> None:
    while (call := calls.get()) is not None:
        arguments, answer = call
        try:
            answer.put((function(*arguments), None))
        except BaseException as error:
            answer.put((None, error))
        del call, arguments, answer
