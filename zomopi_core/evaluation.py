"""The evaluations of a step: one after the other or in parallel, with time limits and retries."""

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
    """Calls a function at points, and deals with what fails.

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
        #: whether the objective is called as it is where nothing is recorded
        self.plain = timeout is None and parallel is None and not failures.retries
        self._allowed = 0  # evaluations that failures may cost

    def __call__(
        self,
        points: Sequence[Any],
        key: int | None,
        recorder: Recorder | None = None,
        allowed: int | None = None,
    ) -> Array:
        """Return the losses of `points`, 1-d.

        Parameters
        ----------
        points : sequence
        key : int or None
            For a function that takes it.
        recorder : Recorder, optional
            Where slow evaluations are recorded one by one; what it knows is not evaluated.
        allowed : int, optional
            Evaluations that retries may take beside those of the points; by default any number.
        """
        objective = self._objective
        if self.plain and (recorder is None or objective.vectorized):
            return objective(points, key, self._failures.of_exception)
        self._allowed = 2**62 if allowed is None else allowed
        if objective.vectorized:
            return self._stack(objective.prepared(points), len(points), key)
        known = {} if recorder is None else recorder.known()
        objective.calls += len(known)
        write = None if recorder is None else recorder.write_probe
        if self._parallel is not None:
            return self._at_once(self._parallel, points, key, known, write)
        losses = []
        for i, point in enumerate(objective.prepared(points)):
            if i in known:
                losses.append(known[i])
                continue
            began = time.perf_counter()
            losses.append(self._one(point, key))
            slow = time.perf_counter() - began >= SLOW_SECONDS
            if write is not None and slow and i + 1 < len(points):  # the last comes with its row
                _write(write, i, losses[-1])
        return join_losses(losses)

    def _one(self, point: Any, key: int | None) -> Any:
        tried = 0
        while True:
            self._objective.calls += 1
            try:
                loss = self._call(point, key)
                loss = loss if type(loss) is float else scalar_loss(loss)
            except Exception as error:
                kind = _kind(error)
                cause: Exception | None = error
            else:
                if self._good(loss):
                    return loss
                kind, cause = "non-finite", None
            if not self._again(kind, tried):
                return loss if cause is None else self._failures.outcome(kind, cause)
            tried += 1

    def _stack(self, stack: Any, count: int, key: int | None) -> Array:
        """Evaluate a stack of points, all of which fail together."""
        tried = 0
        while True:
            self._objective.calls += count
            try:
                losses = self._objective.checked_stack(self._call(stack, key), count)
            except Exception as error:
                kind, cause = _kind(error), error
            else:
                return losses
            if not self._again(kind, tried, count):
                return stack_losses([self._failures.outcome(kind, cause) for _ in range(count)])
            tried += 1

    def _good(self, loss: Any) -> bool:
        """Tell whether a loss is taken as it is; a device is only waited for if it matters."""
        return self._failures.retry("non-finite", 0) is None or math.isfinite(float(loss))

    def _again(self, kind: str, tried: int, cost: int = 1) -> bool:
        """Wait and return True if what failed is to be evaluated again."""
        retry = self._failures.retry(kind, tried)
        if retry is None or self._allowed < cost:
            return False
        self._allowed -= cost
        retry._pause(tried)
        return True

    def _at_once(
        self,
        parallel: Parallel,
        points: Sequence[Any],
        key: int | None,
        known: Mapping[int, Any],
        write: Callable[[int, Any], None] | None,
    ) -> Array:
        """Evaluate all points at a time."""
        losses: dict[int, Any] = dict(known)
        began = time.perf_counter()
        tried = [0] * len(points)
        addressable = hasattr(points, "params")  # those of a step have numbers, others come alone

        def start(i: int, point: Any) -> None:
            self._objective.calls += 1
            parallel.start(i, point, i if addressable else None, key)

        try:
            for i in range(len(points)):
                if i not in known:
                    start(i, points[i])
            while len(losses) < len(points):
                for i, loss, error in parallel.finished():
                    cause = error
                    if error is None and self._good(loss):
                        losses[i] = loss
                        slow = time.perf_counter() - began >= SLOW_SECONDS
                        if write is not None and slow and len(losses) < len(points):
                            _write(write, i, loss)
                        continue
                    if cause is not None and not isinstance(cause, Exception):
                        raise cause
                    kind = "non-finite" if cause is None else _kind(cause)
                    if self._again(kind, tried[i]):
                        tried[i] += 1
                        start(i, points[i])
                    else:
                        losses[i] = loss if cause is None else self._failures.outcome(kind, cause)
        except BaseException:
            parallel.discard()
            raise
        return join_losses([losses[i] for i in range(len(points))])


def _write(write: Callable[[int, Any], None], index: int, loss: Any) -> None:
    """Record a loss; what failed may be evaluated again by whoever resumes."""
    if isinstance(loss, float):
        if math.isfinite(loss):
            write(index, loss)
    elif bool(_arrays.namespace(loss).isfinite(loss)):
        write(index, loss)


def _kind(error: Exception) -> str:
    return "timeout" if isinstance(error, errors.EvaluationTimeoutError) else "exception"


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
