"""What steps cost in queries, where those with a snapshot cost more or less than the others."""

from __future__ import annotations

from typing import NamedTuple


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
