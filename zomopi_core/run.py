"""One run of `minimize`: its counters, its points, its evaluations; they outlive an exception."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from typing import Any

from . import _arrays, errors
from ._checks import check_count
from ._journal_rows import mean_of_finite, note_of, read_note
from .best import Best
from .costs import CHECKS, queries_per_step, spare_queries, step_costs
from .draws import step_key
from .evaluation import Evaluator
from .failures import Failures
from .guard import Guard, back_at
from .history import History
from .journal import Recorder
from .method import leaves_of, like_params
from .objective import Objective, check_gradient, takes_key
from .optimizer import Optimizer
from .ownership import Ownership
from .queries import Queries, Single
from .result import Iteration
from .stopping import MESSAGES, Rules
from .workers import parallel_of

# A budget of this many steps pays for measuring the noise of the function.
_NOISE_WORTH = 20


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
        report_every: int = 1,
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
        self.history = History()
        self.report_every = report_every
        #: whether all that there is to know of the last step is known
        self.reported = True
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
        wait: bool = True,
    ) -> tuple[Any, list[float] | None]:
        """Return the losses of `points`, where they were computed and as numbers.

        Of these the first `probes`, by default all, make the estimate. The budget must pay for the
        evaluations that are `due` after them. Without `wait` there may be no numbers yet.
        """
        optimizer, recorder, key = self.optimizer, self.recorder, None
        step = optimizer.nit
        if not full_batch:
            key = step_key(self.seed, step) if self.objective.takes_key else 0
        rate = math.nan if kind or recorder is None else optimizer.learning_rate
        return self.queries(kind, step, points, key, recorder, probes, rate, due, wait)

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
        losses = self.evaluate(kind, Single(make), full_batch, due=due)[1]
        assert losses is not None  # they were waited for
        return losses[0]

    def begin(self) -> None:
        """Evaluate x0 where no step will and the budget pays for it."""
        starts_with_loss = self.constrained or self.gradient is not None
        if self.spare == CHECKS and not starts_with_loss and not self.objective.calls:
            self.best.offer(self.evaluate_at("start", self.optimizer.x), 0, self.optimizer.x)

    def step(self) -> None:
        """Take a step from the losses of its probes."""
        optimizer = self.optimizer
        rate = optimizer.learning_rate
        evaluates_iterate = self.constrained and self.evaluates_iterate
        count = None if self._same_queries is not None else optimizer.probe_queries
        candidates = optimizer.ask()
        full_batch = candidates.full_batch
        if evaluates_iterate:
            loss = self.evaluate_at("iterate", optimizer.x, full_batch, len(candidates))
            self.best.offer(loss, optimizer.nit, optimizer.x)
        diverged, later = False, self.report_every > 1
        wait = not later or optimizer._point.attends
        losses, host = self.evaluate("", candidates, full_batch, count, 0, wait)
        if later:
            self.reported = host is not None or self._report_is_due()
            if not self.reported:
                self._go_on(losses, count, rate)
                return
            host, diverged = self._fetched(losses, host)
        assert host is not None
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
        if guard is not None and (guard.diverged(told, loss, best.loss) or diverged):
            self._go_back(guard)

    def _report_is_due(self) -> bool:
        """Tell whether the step whose points were just evaluated ends with a report."""
        steps, rules = self.optimizer.nit + 1, self.rules
        if steps % self.report_every == 0 or steps == rules.max_steps:
            return True
        return rules.max_queries is not None and self._left() < self.next_queries

    def _go_on(self, losses: Any, probes: int | None, rate: float) -> None:
        """Take a step from losses that are looked at later."""
        self.optimizer._take_step(losses)
        calls, elapsed = self.objective.calls, self.queries.told_at
        self.history.add_waiting(losses, probes, (calls, self.best.loss, rate, elapsed))

    def _fetched(self, losses: Any, host: list[float] | None) -> tuple[list[float], bool]:
        """Return the losses of a step as numbers, after those of the steps before it.

        And whether those have diverged.
        """
        late, own = self.history.fetch(*([losses] if host is None else []))
        diverged = False
        for step in late:
            self.queries.take(step.losses)
            if self.guard is not None:
                loss = mean_of_finite(step.told)
                diverged |= self.guard.diverged(step.told, loss, self.best.loss)
        if host is None:
            (host,) = own
            self.queries.take(host)
        return host, diverged

    def report(self) -> None:
        """Fetch the losses of the last steps, if they are still where they were computed."""
        if self.history.waits:
            self._fetched(None, [])
            self.reported = True

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
        self.history.add(calls, loss, self.best.loss, rate, elapsed)

    def iteration(self) -> Iteration:
        """Return what there is to tell of the last step."""
        queries, loss, best, rate, elapsed = self.history.last
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
            if status not in MESSAGES:
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
        if rules.max_queries is not None and self._left() < self.next_queries:
            # The last steps go without the points that would tune the steps after them.
            self.optimizer.skip_search()
            if self._left() < self.next_queries:
                return "max_queries"
        if self.failures.too_many:
            return "failures"
        if rules.max_steps is not None and nit >= rules.max_steps:
            return "max_steps"
        most = rules.stagnation
        if most is not None and self.reported and nit - self.best.steps >= most:
            return "stagnation"
        return None

    def _left(self) -> int:
        """Return the queries that are left for steps."""
        most = self.rules.max_queries
        return 2**62 if most is None else most - self.objective.calls - min(self.spare, 2)

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

    def state(self) -> dict[str, Any]:
        """Return all that the rest of the run depends on."""
        failures = self.failures
        return {
            "point": self.optimizer._point,
            "best": self.best.state(),
            "history": self.history.table(),
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
        self.history.restore(state["history"])
        self.objective.calls = state["calls"]
        self.queries.go_on_from(state["elapsed"])
        self.failures.restore(state["failures"])
        if self.guard is not None:
            self.guard.restore(state["guard"])


def seed_of_keys(seed: Any) -> int:
    """Return the seed of a step's keys; 0 for a sampler of one's own that has no seed."""
    seed = getattr(seed, "seed", seed)
    return int(seed) if isinstance(seed, numbers.Integral) and 0 <= int(seed) < 2**64 else 0
