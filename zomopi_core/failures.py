"""What becomes of evaluations that fail: left out, tried again, or the end of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from . import errors
from ._checks import as_python, check_count, check_name, not_negative

KINDS = ("non-finite", "exception", "timeout")
_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Retry:
    """Evaluate a point again that failed, a few times and with growing pauses.

    Parameters
    ----------
    times : int
        Most evaluations of a point beside the first. Each is counted, and none is made that the
        budget does not pay for beside the rest of its step.
    wait : float
        Seconds before the first of them; doubled before each further one, up to a minute.
    then : {"skip", "raise"}
        What happens if all of them fail.

    Examples
    --------
    >>> import numpy as np
    >>> import zomopi_core as zo
    >>> calls = iter(range(10**6))
    >>> def flaky(x):
    ...     if next(calls) % 10 == 9:
    ...         raise ConnectionError("the instrument does not answer")
    ...     return np.sum((x - 1.0) ** 2)
    >>> result = zo.minimize(flaky, np.zeros((4, 3)), max_queries=400,
    ...                      on_failure={"exception": zo.Retry(times=2, wait=0.0)})
    >>> result.success
    True
    """

    times: int = 3
    wait: float = 1.0
    then: str = "skip"

    def __post_init__(self) -> None:
        check_count("times", self.times)
        check_name("then", self.then, ("skip", "raise"))
        as_python(self, times=int, wait=lambda value: not_negative("wait", value))

    def _pause(self, tried: int) -> None:
        """Wait before the next evaluation."""
        time.sleep(min(self.wait * 2.0**tried, _LONGEST_WAIT))


Policy = str | Retry


def _policy(value: Any) -> Policy:
    if isinstance(value, Retry):
        return value
    if isinstance(value, Mapping):  # from a journal
        return Retry(**value)
    check_name("on_failure", value, ("skip", "retry", "raise"))
    return Retry() if value == "retry" else str(value)


class Failures:
    """The policy for each kind of failure, and what failed so far.

    Parameters
    ----------
    on_failure : str, Retry, dict or None
        As in `minimize`.
    limit : int or None
        Failures in a row that end the run.
    """

    def __init__(
        self, on_failure: str | Retry | Mapping[str, Any] | None, limit: int | None = None
    ) -> None:
        given: Mapping[str, Any] = {}
        if isinstance(on_failure, Mapping):
            given = on_failure
        elif on_failure is not None:
            given = dict.fromkeys(KINDS, on_failure)
        for kind in given:
            check_name("on_failure's keys", kind, KINDS)
        self.policy: dict[str, Policy] = {
            "non-finite": "skip",
            "exception": "raise",
            "timeout": "skip",
        }
        self.policy |= {kind: _policy(value) for kind, value in given.items()}
        self.limit = limit
        self.count = self.gradients = self.in_a_row = 0
        self.first: str | None = None
        self._stand_ins = 0  # losses that stand for failures which were dealt with

    @property
    def retries(self) -> bool:
        """Whether some kind of failure is tried again."""
        return any(isinstance(policy, Retry) for policy in self.policy.values())

    def as_json(self) -> dict[str, Any]:
        """Return the policies as a journal holds them."""
        return {k: asdict(p) if isinstance(p, Retry) else p for k, p in self.policy.items()}

    def retry(self, kind: str, tried: int) -> Retry | None:
        """Return how to try again after `tried` further attempts; None if not at all."""
        policy = self.policy[kind]
        return policy if isinstance(policy, Retry) and tried < policy.times else None

    def of_exception(self, error: Exception) -> float:
        """Return the loss that stands for an exception, or raise it."""
        return self.outcome("exception", error)

    def outcome(self, kind: str, error: Exception) -> float:
        """Return the loss that stands for a failure that is not tried again, or raise it."""
        policy = self.policy[kind]
        if (policy.then if isinstance(policy, Retry) else policy) == "raise":
            raise error
        self.first = self.first or f"{type(error).__name__}: {error}"
        self._stand_ins += 1
        return math.nan

    def check(self, losses: list[float]) -> None:
        """Count the losses that are not finite; raise if the policy says so."""
        bad = [x for x in losses if not math.isfinite(x)]
        stand_ins, self._stand_ins = self._stand_ins, 0
        policy = self.policy["non-finite"]
        if len(bad) > stand_ins:
            if (policy.then if isinstance(policy, Retry) else policy) == "raise":
                raise errors.NonFiniteLossError(
                    f"fun returned a loss that is not finite: {losses}"
                )
            self.first = self.first or f"a loss of {bad[0]}"
        self.count += len(bad)
        self.follow(losses)

    def follow(self, losses: list[float]) -> None:
        """Count the failures at the end of what was evaluated."""
        for loss in losses:
            self.in_a_row = 0 if math.isfinite(loss) else self.in_a_row + 1

    @property
    def too_many(self) -> bool:
        """Whether so many evaluations failed in a row that the run must end."""
        return self.limit is not None and self.in_a_row >= self.limit

    def of_gradient(self, cause: str) -> None:
        """Count a gradient that failed."""
        self.count += 1
        self.first = self.first or cause

    def check_gradient(self, finite: bool) -> None:
        """Count a gradient that is not finite; raise if the policy says so."""
        if finite:
            return
        if self.policy["non-finite"] == "raise":
            raise errors.NonFiniteLossError("gradient returned a number that is not finite")
        self.of_gradient("a gradient that is not finite")

    def describe(self, calls: int) -> str:
        """Return a sentence on what failed, empty if nothing did."""
        if not self.count:
            return ""
        total = calls + self.gradients
        return f" {self.count} of {total} evaluations failed, the first with {self.first}."

    def state(self) -> dict[str, Any]:
        """Return the counts."""
        return {
            "count": self.count,
            "gradients": self.gradients,
            "in_a_row": self.in_a_row,
            "first": self.first,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.count, self.gradients = state["count"], state["gradients"]
        self.in_a_row, self.first = state["in_a_row"], state["first"]

    def recall(self, note: dict[str, Any]) -> None:
        """Count what a recorded row says of failures."""
        self.count += int(note.get("failed", 0))
        if self.first is None and "first" in note:
            self.first = str(note["first"])
