"""The function as a racing solver sees it: counted, scored, and shut when the budget is spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _arrays
from .draws import step_key
from .losses import scalar_loss
from .method import leaves_of, like_params
from .objective import takes_key

_CHECKPOINTS = 200


class BudgetSpent(BaseException):
    """No evaluation is left.

    Not an Exception: a solver that survives failures of its function must not survive this.
    """


class Outcome(NamedTuple):
    """What a run came to."""

    target: float
    start: float
    final: float
    queries: int
    queries_to_target: float
    seconds: float
    curve: list[tuple[int, float]]


def checkpoints(budget: int) -> list[int]:
    """Return the numbers of queries at which runs are scored, even in their logarithm."""
    return sorted({round(q) for q in np.geomspace(1, budget, _CHECKPOINTS)})


class Oracle:
    """The function that a solver in a race gets: call it with a point, and it returns the loss.

    Every call is counted, whatever it is for. When the budget is spent, a call ends the run: it
    raises an exception that is not for the solver.

    What is scored is the loss without noise at the point that the solver would return after so
    many queries. Of a function without noise that is the best point it has evaluated; of a noisy
    one it is what the solver recommends, and the point of the lowest value it has seen if it
    never does. Scores are not shown to any solver.

    Attributes
    ----------
    max_queries : int
        The budget.
    queries : int
        Evaluations so far.
    noisy : bool
        Whether two evaluations at one point may differ.
    keyed : bool
        Whether the noise is chosen by a key: ``oracle(x, key=7)`` has the same noise for each
        `x`. Without a key, each evaluation has its own.
    """

    def __init__(
        self,
        problem: Any,
        max_queries: int,
        seed: int = 0,
        show: Callable[[int, float], None] | None = None,
        interrupts: Sequence[int] = (),
    ) -> None:
        self.max_queries, self.queries = max_queries, 0
        self.noisy = bool(getattr(problem, "noisy", False))
        self.keyed = takes_key(problem.fun)
        self._fun, self._seed, self._show = problem.fun, seed, show
        self._interrupts = interrupts
        self._exact = getattr(problem, "exact", problem.fun)
        target = getattr(problem, "target", None)
        self._target = -math.inf if target is None else float(target)
        self._scoring = 0.0  # seconds that are the race's, not the solver's
        self._incumbent: Any = problem.x0
        self._recommended = self._scored = False
        self._lowest = math.inf
        self._marks = checkpoints(max_queries)[::-1]
        self._reached = math.inf
        self._curve: list[tuple[int, float]] = []
        self._start = self._current = self._score_of(problem.x0)
        self._took(0)
        self._began = time.perf_counter()

    def __call__(self, x: Any, key: int | None = None) -> float:
        """Return the loss at `x`, in the form of the problem's `x0`."""
        if self.queries >= self.max_queries:
            raise BudgetSpent
        if self._interrupts:  # somebody has swallowed a Ctrl-C, as imports with a bare except do
            raise KeyboardInterrupt
        self.queries += 1
        if not self.keyed:
            loss = self._fun(x)
        else:
            fresh = step_key(self._seed, self.queries) if key is None else key
            loss = self._fun(x, key=fresh)
        loss = float(scalar_loss(loss))
        if loss < self._lowest:
            self._lowest = loss
            if not self.noisy:
                self._score(min(loss, self._current))
            elif not self._recommended:
                self._keep(x)
        if self._marks and self.queries >= self._marks[-1]:
            self._mark()
        return loss

    def recommend(self, x: Any) -> None:
        """Say which point the solver would return if it ended now; only noise makes it matter."""
        if self.noisy:
            self._recommended = True
            self._keep(x)

    def finish(self, answer: Any = None) -> Outcome:
        """Score the end: `answer` is what the solver returned, if it did."""
        seconds = time.perf_counter() - self._began - self._scoring
        if self.noisy and answer is not None:
            self.recommend(answer)
        self._mark()
        return Outcome(
            self._target,
            self._start,
            self._current,
            self.queries,
            self._reached,
            seconds,
            self._curve,
        )

    def _keep(self, x: Any) -> None:
        # A solver may go on to change its arrays in place.
        self._incumbent = like_params(x, [_arrays.copy(a) for a in leaves_of(x)])
        self._scored = False

    def _mark(self) -> None:
        """Score a noisy run, which is not done at every query, and add to the curve."""
        while self._marks and self.queries >= self._marks[-1]:
            self._marks.pop()
        if self.noisy and not self._scored and self.queries:
            self._score(self._score_of(self._incumbent))
            self._scored = True
        self._took(self.queries)
        if self._show is not None:
            self._show(self.queries, self._current)

    def _score_of(self, x: Any) -> float:
        began = time.perf_counter()
        keywords = {"key": 0} if takes_key(self._exact) else {}
        value = float(scalar_loss(self._exact(x, **keywords)))
        self._scoring += time.perf_counter() - began
        return value if not math.isnan(value) else math.inf

    def _score(self, score: float) -> None:
        self._current = score
        if score <= self._target:
            self._reached = min(self._reached, self.queries)

    def _took(self, queries: int) -> None:
        if not self._curve or self._curve[-1][1] != self._current:
            self._curve.append((queries, self._current))
        if self._current <= self._target:
            self._reached = min(self._reached, queries)
