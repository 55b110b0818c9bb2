"""The evaluations of a run: taken from its journal, made, made again where they failed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _arrays, errors
from ._arrays import Array
from ._journal_rows import (
    Row,
    failures_of,
    mean_of_finite,
    note_of,
    pack_losses,
    read_note,
)
from .evaluation import Evaluator
from .failures import Failures
from .journal import Recorder
from .objective import Objective


class Single(Sequence[Any]):
    """A point beside the steps, made again whenever it is asked for.

    A function may change what it gets; what is evaluated again is evaluated as it was.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        if index not in (0, -1):
            raise IndexError(index)
        return self._make()


class Queries:
    """Losses of points for one run, and what they cost.

    Parameters
    ----------
    objective : Objective
    failures : Failures
    evaluate : Evaluator
    limit : int or None
        Evaluations after which none is repeated.
    """

    def __init__(
        self, objective: Objective, failures: Failures, evaluate: Evaluator, limit: int | None
    ) -> None:
        self._objective, self._failures, self._evaluate = objective, failures, evaluate
        self._limit = 2**62 if limit is None else limit
        self._began = time.perf_counter()
        self._recorded_at: float | None = None  # of the last evaluation, if it was recorded

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, those of its life before a crash among them."""
        return time.perf_counter() - self._began

    @property
    def told_at(self) -> float:
        """Seconds from the beginning to the last evaluation, in the life that made it."""
        at = self._recorded_at
        return time.perf_counter() - self._began if at is None else at

    def go_on_from(self, elapsed: float) -> None:
        """Take over the seconds of a life before."""
        self._began = time.perf_counter() - elapsed

    def __call__(
        self,
        kind: str,
        step: int,
        points: Sequence[Any],
        key: int | None,
        recorder: Recorder | None,
        probes: int | None = None,
        rate: float = math.nan,
        due: int = 0,
        wait: bool = True,
    ) -> tuple[Array, list[float] | None]:
        """Return the losses of points, where they were computed and as numbers.

        What is recorded is not evaluated again.

        Parameters
        ----------
        kind, step : str and int
            Of the evaluation, by which its row is found.
        points : sequence
        key : int or None
            For a function that takes it.
        recorder : Recorder or None
        probes : int, optional
            Number of points that make the estimate and the loss that is told, by default all; the
            others lie along a line.
        rate : float
            Learning rate, to be recorded.
        due : int
            Evaluations for which the budget must still pay after repetitions.
        wait : bool
            Whether numbers are wanted now. If not there are none, unless an evaluation failed;
            `take` gets them later.
        """
        failures = self._failures
        if recorder is not None and (row := recorder.take(kind, step)) is not None:
            return self._recorded(recorder, row, len(points))
        self._recorded_at = None
        before = failures.count, failures.first
        losses = self._evaluate(points, range(len(points)), key, recorder)
        if recorder is not None:
            losses = recorder.native(losses)
        if not wait and not failures.pending:
            return losses, None
        host: list[float] = _arrays.to_host(losses).tolist()
        if math.isfinite(sum(host)):  # one test for all in the usual case
            failures.in_a_row = 0
        else:
            losses, host = self._repaired(points, key, recorder, losses, host, probes, due)
        if recorder is not None:
            note, calls = note_of(**failures.note(before)), self._objective.calls
            loss, packed = mean_of_finite(host[:probes]), pack_losses(losses)
            recorder.write(Row(step, kind, calls, loss, rate, self.elapsed, packed, note))
        return losses, host

    def take(self, host: list[float]) -> None:
        """Take the losses of a step that were not waited for; what failed is left out."""
        failures = self._failures
        if math.isfinite(sum(host)):
            failures.in_a_row = 0
        else:
            before = failures.count
            failures.inspect(host, range(len(host)))
            failures.settle(host, failures.count - before)

    def mark(self, recorder: Recorder, kind: str, step: int, rate: float, note: str = "") -> None:
        """Record what is no evaluation, unless it is what the journal says next."""
        if recorder.take(kind, step) is None:
            calls = self._objective.calls
            row = Row(step, kind, calls, math.nan, rate, self.elapsed, _NO_LOSSES, note)
            recorder.write(row)

    def _recorded(self, recorder: Recorder, row: Row, count: int) -> tuple[Array, list[float]]:
        """Return recorded losses, and take over what was counted."""
        losses = recorder.losses(row, count)
        host: list[float] = _arrays.to_host(losses).tolist()
        self._objective.calls = row.queries
        self.go_on_from(row.elapsed)
        self._recorded_at = row.elapsed
        try:
            self._failures.recall(failures_of(row), read_note(row), host)
        except (TypeError, ValueError) as error:
            raise errors.other_run(f"the note of step {row.step}: {error}") from error
        return losses, host

    def _repaired(
        self,
        points: Sequence[Any],
        key: int | None,
        recorder: Recorder | None,
        losses: Array,
        host: list[float],
        probes: int | None,
        due: int,
    ) -> tuple[Array, list[float]]:
        """Evaluate again what failed, as far as policies and budget go."""

        def again(places: list[int]) -> Array:
            found = self._evaluate(points, places, key, recorder)
            return found if recorder is None else recorder.native(found)

        def paid_for() -> int:
            return max(0, self._limit - self._objective.calls - due)

        return self._failures.repaired(losses, host, again, probes, paid_for)


_NO_LOSSES = pack_losses(np.zeros(0))
