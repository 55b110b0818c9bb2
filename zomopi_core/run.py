"""One run of `minimize`: its counters, its points, its evaluations; they outlive an exception."""

from __future__ import annotations

import math
import numbers
from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, errors
from ._checks import check_count
from ._journal_rows import mean_of_finite, note_of, read_note
from .best import Best
from .costs import CHECKS, queries_per_step, spare_queries, step_costs
from .draws import step_key
from .evaluation import Evaluator
from .failures import Failures
from .guard import Guard, back_at
from .journal import Recorder
from .method import leaves_of, like_params
from .objective import Objective, check_gradient, takes_key
from .optimizer import Optimizer
from .ownership import Ownership
from .queries import Queries, Single
from .result import Iteration, Result
from .workers import parallel_of

# Noise levels within which two losses, of one evaluation each, are as good as equal.
_EQUAL = 3.0
# Those by which two of them differ for a reason.
_CHANCE = 6.0
# A budget of this many steps pays for measuring the noise of the function.
_NOISE_WORTH = 20

_UNSUCCESSFUL = ("interrupted", "failed", "failures")

_MESSAGES = {
    "max_queries": "The budget of evaluations is spent.",
    "max_steps": "The number of steps is reached.",
    "max_time": "The time is up.",
    "target": "The target is reached.",
    "failures": "Too many evaluations failed in a row.",
    "stagnation": "The best loss has not improved for the number of steps given as stagnation.",
    "callback": "The callback asked to stop.",
    "interrupted": "Interrupted from the keyboard; this is what was reached.",
}


class Rules(NamedTuple):
    """What ends a run; None where there is no such rule. See `minimize`."""

    max_queries: int | None = None
    max_steps: int | None = None
    max_time: float | None = None
    target: float | None = None
    stagnation: int | None = None


class Run:
    """One call of `minimize`: the counters and the points, so that they outlive an exception."""

    def __init__(
        self,
        optimizer: Optimizer,
        objective: Objective,
        failures: Failures,
        *,
        gradient: Callable[..., Any] | None,
        seed: int,
        constrained: bool,
        rules: Rules,
        guarded: bool,
        timeout: float | None = None,
        workers: Any = None,
        recorder: Recorder | None = None,
    ) -> None:
        self.optimizer, self.objective, self.failures = optimizer, objective, failures
        self.gradient = gradient
        self.seed, self.constrained = seed, constrained
        self.rules, self.recorder = rules, recorder
        self.parallel = parallel_of(workers, objective.call, optimizer, timeout)
        self.guard = Guard() if guarded and not optimizer.tunes_rate else None
        costs = step_costs(optimizer.method, constrained)
        self.spare = spare_queries(rules.max_queries, costs)
        if rules.max_queries is not None and rules.max_queries < costs.of(_NOISE_WORTH):
            optimizer.skip_noise()
        self._same_queries: int | None = None  # where all steps cost the same
        if gradient is not None:
            self._same_queries = 1
        elif optimizer.method.snapshots is None and not optimizer.tunes:
            self._same_queries = optimizer.queries + self.evaluates_iterate
        self.ownership = Ownership(optimizer._stepper.binding)
        self.best = Best(optimizer.x)
        self._may_average = optimizer.tunes_rate
        optimizer._use_best_seen(self.best)
        self._history = array("d")  # five numbers a step; a long run keeps nothing else
        evaluate = Evaluator(objective, failures, timeout=timeout, parallel=self.parallel)
        most = rules.max_queries
        # What is kept for checking the result is not spent on what failed.
        limit = None if most is None else most - self.spare
        self.queries = Queries(objective, failures, evaluate, limit)

    @property
    def per_step(self) -> int:
        """Queries of the next step."""
        return queries_per_step(self.optimizer._step_method, self.constrained)

    @property
    def evaluates_iterate(self) -> bool:
        """Whether the next step also evaluates the iterate.

        Probes may lie outside of the constraints, so that only iterates may be returned; their
        loss is known from a baseline or from an evaluation of its own.
        """
        if not self.constrained:
            return False
        return self.per_step > self.optimizer.probe_queries > 0

    def evaluate(
        self,
        kind: str,
        points: Any,
        full_batch: bool = False,
        probes: int | None = None,
        due: int = 0,
    ) -> tuple[Any, list[float]]:
        """Return the losses of `points`, where they were computed and as numbers.

        Of these the first `probes`, by default all, make the estimate. The budget must pay for the
        evaluations that are `due` after them.
        """
        optimizer, recorder, key = self.optimizer, self.recorder, None
        step = optimizer.nit
        if not full_batch:
            key = step_key(self.seed, step) if self.objective.takes_key else 0
        rate = math.nan if kind or recorder is None else optimizer.learning_rate
        return self.queries(kind, step, points, key, recorder, probes, rate, due)

    def evaluate_at(
        self, kind: str, point: Any, full_batch: bool | None = None, due: int = 0
    ) -> float:
        """Return the loss at a point, of which the function gets a copy.

        A function that was told when all data are wanted is checked on all data, by default.
        """
        return self._evaluate_one(kind, lambda: self.ownership.lent(point), full_batch, due)

    def evaluate_best(self, kind: str) -> float:
        """Return the loss at the best point, evaluated again."""
        return self._evaluate_one(kind, lambda: self.ownership.lent_best(self.best))

    def _evaluate_one(
        self, kind: str, make: Callable[[], Any], full_batch: bool | None = None, due: int = 0
    ) -> float:
        if full_batch is None:
            full_batch = self.optimizer.method.takes_full_batches
        return self.evaluate(kind, Single(make), full_batch, due=due)[1][0]

    def begin(self) -> None:
        """Evaluate x0 where no step will and the budget pays for it."""
        starts_with_loss = self.constrained or self.gradient is not None
        if self.spare == CHECKS and not starts_with_loss and not self.objective.calls:
            self.best.offer(self.evaluate_at("start", self.optimizer.x), 0, self.optimizer.x)

    def step(self) -> None:
        """Take a step from the losses of its probes."""
        optimizer = self.optimizer
        rate, evaluates_iterate = optimizer.learning_rate, self.evaluates_iterate
        count = None if self._same_queries is not None else optimizer.probe_queries
        candidates = optimizer.ask()
        full_batch = candidates.full_batch
        if evaluates_iterate:
            loss = self.evaluate_at("iterate", optimizer.x, full_batch, len(candidates))
            self.best.offer(loss, optimizer.nit, optimizer.x)
        losses, host = self.evaluate("", candidates, full_batch, count)
        told = host if count is None else host[:count]
        loss, best = mean_of_finite(told), self.best
        if not self.constrained:
            whole = math.isfinite(loss if count is None else sum(host))
            lowest = min(host) if whole else -math.inf
            if lowest < best.loss:
                best.offer_candidates(host, optimizer.nit + 1, candidates)
        elif not evaluates_iterate:  # the baseline is the iterate
            best.offer(host[0], optimizer.nit, optimizer.x)
        went_back = optimizer._take_step(losses)  # what the objective returned is checked
        if self._may_average and not best.gave_way and optimizer._point.averages:
            best.give_way()
        if self.parallel is not None:
            if went_back:  # to what only this process has seen
                self.parallel.renew()
            else:
                self.parallel.advance(losses)
        self.record(loss, rate)
        guard = self.guard
        if guard is not None and guard.diverged(told, loss, best.loss):
            self._go_back(guard)

    def _go_back(self, guard: Guard) -> None:
        """Return to the best point after a divergence, and record that."""
        optimizer, recorder, step = self.optimizer, self.recorder, self.optimizer.nit
        best = self.ownership.claimed(self.best.point)
        optimizer._restore(back_at(optimizer._point, best, optimizer.method))
        guard.returned(step)
        if self.parallel is not None:
            self.parallel.renew()
        if recorder is not None:
            self.queries.mark(recorder, "guard", step, optimizer.learning_rate)

    def gradient_step(self) -> None:
        """Take a step along a true gradient; the loss is evaluated at the iterate."""
        optimizer, gradient = self.optimizer, self.gradient
        assert gradient is not None
        rate, point = optimizer.learning_rate, optimizer.x
        loss = self.evaluate_at("iterate", point)
        self.best.offer(loss, optimizer.nit, point)
        keywords = {}
        if takes_key(gradient):
            keywords["key"] = step_key(self.seed, optimizer.nit)
        self.failures.gradients += 1
        try:
            slope = gradient(
                like_params(point, [_arrays.copy(x) for x in leaves_of(point)]), **keywords
            )
        except Exception as error:
            self.failures.of_gradient(error)
            slope = like_params(point, [x * math.nan for x in leaves_of(point)])
        else:
            slope = check_gradient(slope, point)
            finite = (_arrays.namespace(g).isfinite(g) for g in leaves_of(slope))
            if not all(bool(_arrays.namespace(f).all(f)) for f in finite):
                self.failures.of_gradient(errors.gradient_not_finite())
        optimizer.descend(slope)
        self.record(loss, rate)

    def record(self, loss: float, rate: float) -> None:
        """Add a step to the history."""
        calls, elapsed = self.objective.calls, self.queries.told_at
        self._history.extend((calls, loss, self.best.loss, rate, elapsed))

    def iteration(self) -> Iteration:
        """Return what there is to tell of the last step."""
        queries, loss, best, rate, elapsed = self._history[-5:]
        optimizer = self.optimizer
        return Iteration(optimizer.nit, int(queries), optimizer.x, loss, best, rate, elapsed)

    def why_stop(self) -> str | None:
        """Return the name of the rule that ends the run now, or None."""
        status = self._broken_rule()
        recorder = self.recorder
        if recorder is None:
            return "max_time" if status is None and self._late() else status
        if status is None and recorder.replays:  # of time and callback only the outcome is known
            row = recorder.peek()
            if row is None or row.kind != "stop":
                return None
            status = str(read_note(row).get("status"))
            if status not in _MESSAGES:
                raise errors.other_run(f"it ended for the unknown reason {status!r:.40}")
        elif status is None and self._late():
            status = "max_time"
        return None if status is None else self.stop(status)

    def stop(self, status: str) -> str:
        """Record that the run ends, and return why."""
        recorder, step = self.recorder, self.optimizer.nit
        if recorder is not None:
            if not recorder.replays:
                recorder.save(step, self.state)
            self.queries.mark(recorder, "stop", step, math.nan, note_of(status=status))
        return status

    def _late(self) -> bool:
        return self.rules.max_time is not None and self.queries.elapsed >= self.rules.max_time

    def _broken_rule(self) -> str | None:
        nit, rules = self.optimizer.nit, self.rules
        if rules.target is not None and self.reached(rules.target):
            return "target"
        if rules.max_queries is not None:
            left = rules.max_queries - self.objective.calls - min(self.spare, 2)
            if left < self.next_queries:
                # The last steps go without the points that would tune the steps after them.
                self.optimizer.skip_search()
                if left < self.next_queries:
                    return "max_queries"
        if self.failures.too_many:
            return "failures"
        if rules.max_steps is not None and nit >= rules.max_steps:
            return "max_steps"
        if rules.stagnation is not None and nit - self.best.steps >= rules.stagnation:
            return "stagnation"
        return None

    def reached(self, target: float) -> bool:
        """Tell whether the best point's loss is within the target when evaluated once more.

        A function that gives another value there is noisy, and its lowest value of many was luck.
        """
        best = self.best
        if best.loss <= target and self.affords(1):
            if best.gave_way:
                average = self.optimizer._point.best
                best.correct(self.evaluate_at("target", average))
                if best.loss <= target:
                    best.take(best.loss, average)
            else:
                best.correct(self.evaluate_best("target"))
        return best.loss <= target

    @property
    def next_queries(self) -> int:
        """Queries of the next step."""
        if self._same_queries is not None:
            return self._same_queries
        return self.optimizer.queries + self.evaluates_iterate

    def affords(self, queries: int) -> bool:
        """Tell whether the budget pays for so many evaluations more."""
        most = self.rules.max_queries
        return most is None or self.objective.calls + queries <= most

    def settle(self, status: str) -> None:
        """Choose between the best point seen and the last iterates by fresh evaluations."""
        if not self.spare or status == "target":
            return
        best, optimizer = self.best, self.optimizer
        self._complete()
        if self.affords(1) and math.isfinite(best.loss):
            again = self.evaluate_best("best")
            if math.isfinite(again):  # a failure is no loss
                best.correct(again)
        if self.affords(1) and optimizer.nit:
            last = optimizer.x
            # Between equals the outcome of more evaluations: the last iterate before the best of
            # single points, but an average of iterates before the last one.
            averages = optimizer.estimate is not last
            margin = (-_CHANCE if averages else _EQUAL) * optimizer.noise
            best.offer(self.evaluate_at("last", last), optimizer.nit, last, margin)

    def _complete(self) -> None:
        """Let what the optimizer remembers be the best point, where that gave way to it.

        The lowest loss was luck, so that what line searches have measured takes its place.
        """
        best, point = self.best, self.optimizer._point
        if best.gave_way and point.tuning is not None:
            best.take(point.tuning.descent.lowest, point.best)

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on."""
        failures = self.failures
        return {
            "point": self.optimizer._point,
            "best": self.best.state(),
            "history": np.array(self._history).reshape(-1, 5),
            "calls": self.objective.calls,
            "elapsed": self.queries.elapsed,
            "failures": failures.state(),
            "guard": None if self.guard is None else self.guard.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        for name, count in (("calls", state["calls"]), ("steps", state["best"]["steps"])):
            check_count(name, count, 0)
        self.optimizer._restore(state["point"])
        self.best.restore(state["best"])
        if self.best.gave_way and self.optimizer._point.best is None:
            raise ValueError("it holds no best point")
        self._history = array("d", state["history"].reshape(-1).tolist())
        self.objective.calls = state["calls"]
        self.queries.go_on_from(state["elapsed"])
        self.failures.restore(state["failures"])
        if self.guard is not None:
            self.guard.restore(state["guard"])

    def _remarks(self) -> str:
        """Return sentences on failures and divergences, empty if there were none."""
        remarks = self.failures.describe(self.objective.calls)
        if self.guard is not None and self.guard.returns:
            times = len(self.guard.returns)
            remarks += (
                f" {times} times the loss stayed far above the best, and the run went back to the "
                "best point and on with a shorter step."
            )
        return remarks

    def result(self, status: str, message: str | None = None) -> Result:
        """Return what was reached."""
        columns = np.array(self._history).reshape(-1, 5).T
        names = ("queries", "loss", "best", "learning_rate", "elapsed")
        history = dict(zip(names, columns, strict=True))
        history["queries"] = history["queries"].astype(np.int64)
        self._complete()
        best, optimizer = self.best, self.optimizer
        success = status not in _UNSUCCESSFUL and math.isfinite(best.loss)
        if self.rules.target is not None:
            success = success and best.loss <= self.rules.target
        x, last = self.ownership.given(best, optimizer.x)
        return Result(
            x,
            best.loss,
            last,
            self.objective.calls,
            optimizer.nit,
            success,
            status,
            (message or _MESSAGES[status]) + self._remarks(),
            history,
            () if self.guard is None else tuple(self.guard.returns),
        )


def seed_of_keys(seed: Any) -> int:
    """Return the seed of a step's keys; 0 for a sampler of one's own that has no seed."""
    seed = getattr(seed, "seed", seed)
    return int(seed) if isinstance(seed, numbers.Integral) and 0 <= int(seed) < 2**64 else 0
