"""What becomes of evaluations that fail."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from . import errors
from ._checks import check_name


class Failures:
    """What happens to a loss that is not finite, and to an exception in the function."""

    KINDS = ("non-finite", "exception")
    POLICIES = ("skip", "raise")

    def __init__(self, on_failure: str | Mapping[str, str] | None) -> None:
        policy = {"non-finite": "skip", "exception": "raise"}
        if isinstance(on_failure, Mapping):
            for kind in on_failure:
                check_name("on_failure's keys", kind, self.KINDS)
            policy |= on_failure
        elif on_failure is not None:
            policy = dict.fromkeys(self.KINDS, on_failure)
        for value in policy.values():
            check_name("on_failure", value, self.POLICIES)
        self.policy = policy
        self.count = self.gradients = 0
        self.first: str | None = None

    def of_exception(self, error: Exception) -> float:
        """Return the loss that stands for an exception, or raise it."""
        if self.policy["exception"] == "raise":
            raise error
        self.first = self.first or f"{type(error).__name__}: {error}"
        return math.nan

    def check(self, losses: list[float]) -> None:
        """Count the losses that are not finite; raise if the policy says so."""
        if all(map(math.isfinite, losses)):
            return
        if self.policy["non-finite"] == "raise":
            raise errors.NonFiniteLossError(f"fun returned a loss that is not finite: {losses}")
        bad = [x for x in losses if not math.isfinite(x)]
        self.count += len(bad)
        self.first = self.first or f"a loss of {bad[0]}"

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
        return {"count": self.count, "gradients": self.gradients, "first": self.first}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.count, self.gradients = state["count"], state["gradients"]
        self.first = state["first"]

    def recall(self, note: dict[str, Any]) -> None:
        """Count what a recorded row says of failures."""
        self.count += int(note.get("failed", 0))
        if self.first is None and "first" in note:
            self.first = str(note["first"])
