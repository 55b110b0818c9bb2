"""What steps cost in queries, and how many a budget pays for."""

from __future__ import annotations

from typing import NamedTuple

from .method import Method

# Queries beside the steps: one for x0 and two to check the result. All of them are spent where
# they are a small part of the budget; below this many steps only that on the best point is.
CHECKS = 3
_STEPS_WORTH_CHECKS = 10


class StepCosts(NamedTuple):
    """The queries of the steps of a run in which no step fails.

    Attributes
    ----------
    usual : int
        Of a step without a snapshot.
    at_snapshot : int
        Of one with a snapshot, as the first is.
    every : int
        Steps from one snapshot to the next; 1 where all steps cost the same.
    """

    usual: int
    at_snapshot: int
    every: int

    def of(self, steps: int) -> int:
        """Return the queries of the first so many steps."""
        snapshots = -(-steps // self.every)
        return snapshots * self.at_snapshot + (steps - snapshots) * self.usual

    def paid_by(self, queries: int) -> int:
        """Return how many steps so many queries pay for."""
        periods, rest = divmod(queries, self.of(self.every))
        steps = periods * self.every
        if rest < self.at_snapshot:
            return steps
        return steps + 1 + (rest - self.at_snapshot) // self.usual


def queries_per_step(method: Method, constrained: bool) -> int:
    """Return the queries of a step of `method`.

    Beside the probes, one for the iterate under constraints, unless it is the baseline, and one
    in a first-order method.
    """
    if method.estimator is None:
        return 1
    has_baseline = method.estimator.evaluations[0].probe is None
    return method.evaluations_per_step + (constrained and not has_baseline)


def step_costs(method: Method, constrained: bool) -> StepCosts:
    """Return the queries of the steps of a run."""
    usual, snapshots = queries_per_step(method, constrained), method.snapshots
    if snapshots is None:
        return StepCosts(usual, usual, 1)
    return StepCosts(usual, queries_per_step(snapshots.method, constrained), snapshots.every)


def spare_queries(max_queries: int | None, costs: StepCosts) -> int:
    """Return the queries that are kept for others than the steps' points."""
    if max_queries is None or max_queries >= costs.of(_STEPS_WORTH_CHECKS):
        return CHECKS
    # One at least: a noisy function's lowest loss is luck until it is evaluated again.
    return 1 if max_queries > costs.of(1) else 0


def steps_paid_for(run_queries: int | None, max_steps: int | None, costs: StepCosts) -> int | None:
    """Return the number of steps that the budget pays for; None if only time limits the run."""
    limits = [] if max_steps is None else [max_steps]
    if run_queries is not None:
        limits.append(costs.paid_by(run_queries))
    return min(limits, default=None)
