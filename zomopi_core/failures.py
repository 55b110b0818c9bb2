"""What becomes of evaluations that fail: left out, tried again, or the end of the run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from . import _arrays, errors
from ._arrays import Array
from ._checks import as_python, check_count, check_name, not_negative
from .losses import replace_losses
from .repetition import Repetition

KINDS = ("non-finite", "exception", "timeout")
_LONGEST_WAIT = 60.0
# Of what a message says of the first failure.
_LONGEST_TEXT = 500
# Rounds of repetitions at a step where it is not known whether they help: of points that fail in
# half of the cases one of a million is left.
_MOST_ROUNDS = 20


@dataclass(frozen=True)
class Retry:
    """Evaluate a point again that failed, a few times and with growing pauses.

    The points of a step that failed are evaluated again when all of them were evaluated.

    Parameters
    ----------
    times : int
        Most evaluations of a point beside the first. Each is counted, and none is made that the
        budget does not pay for beside the rest of its step.
    wait : float
        Seconds before the first round of them; doubled before each further one, up to a minute.
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

    def _pause(self, tried: int) -> float:
        """Return the seconds before the next evaluation."""
        return min(self.wait * 2.0 ** min(tried, 1000), _LONGEST_WAIT)


Policy = str | Retry


def _policy(value: Any) -> Policy:
    if isinstance(value, Retry):
        return value
    if isinstance(value, Mapping):  # from a journal
        return Retry(**value)
    check_name("on_failure", value, ("auto", "skip", "retry", "raise"))
    return Retry() if value == "retry" else str(value)


def left_out(
    on_failure: str | Retry | Mapping[str, Any] | None, report_every: int
) -> str | Retry | Mapping[str, Any]:
    """Return the policies of a run that looks at losses later: what is not finite is left out."""
    given = {} if on_failure is None else on_failure
    chosen = given.get("non-finite", "skip") if isinstance(given, Mapping) else given
    if chosen != "skip":
        raise errors.cannot_report_later(f"on_failure={chosen!r} for losses", report_every)
    return {**given, "non-finite": "skip"} if isinstance(given, Mapping) else given


class Failures:
    """The policy for each kind of failure, and what failed so far.

    While the points of a step are evaluated, those that failed are open, by their numbers: they
    are evaluated again, left out at last, or end the run.

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
            "non-finite": "auto",
            "exception": "raise",
            "timeout": "auto",
        }
        self.policy |= {kind: _policy(value) for kind, value in given.items()}
        self.limit = limit
        self.count = self.gradients = self.in_a_row = 0
        self.first: str | None = None
        self._repetition = Repetition()
        self._errors: dict[int, Exception] = {}
        self._open: dict[int, Exception] = {}

    def as_json(self) -> dict[str, Any]:
        """Return the policies as a journal holds them."""
        return {k: asdict(p) if isinstance(p, Retry) else p for k, p in self.policy.items()}

    def failed(self, place: int, error: Exception) -> float:
        """Take the exception of an evaluation; return what stands for its loss, or raise."""
        if self.policy[_kind(error)] == "raise":
            raise error
        self._errors[place] = error
        return math.nan

    def inspect(self, losses: list[float], places: Iterable[int]) -> None:
        """Take the losses of a step after the evaluation of some of its points.

        What failed among these is counted and open until it succeeds or `settle` leaves it out.
        """
        found, self._errors = self._errors, {}
        for i in places:
            self._open.pop(i, None)
            if math.isfinite(losses[i]):
                continue
            error = found.get(i) or errors.loss_not_finite(losses[i])
            kind = _kind(error)
            if self.policy[kind] == "raise":
                raise error
            self._open[i] = error
            self._count(f"a loss of {losses[i]}" if kind == "non-finite" else _text(error))

    def _count(self, what: str) -> None:
        self.count += 1
        self.first = self.first or what[:_LONGEST_TEXT]

    @property
    def pending(self) -> bool:
        """Whether some evaluation of the step has failed by now."""
        return bool(self._errors or self._open)

    @property
    def open(self) -> list[int]:
        """Numbers of the points that failed and may be evaluated again."""
        return sorted(self._open)

    def to_repeat(self, tried: int, line: Sequence[int]) -> list[int]:
        """Return which open points are evaluated again after `tried` rounds of repetitions.

        Parameters
        ----------
        tried : int
        line : sequence of int
            Points of a line search, without which all of it is lost: they come first, and are
            repeated even where failures are left out.
        """
        repeated = [i for i in self._open if self._retry(i, tried) is not None]
        unsure = self._unsure(line, "auto", "skip")
        unsure += [i for i in self._unsure(self._open, "auto") if i not in line]
        count = self._repetition.allowed(len(unsure)) if tried < _MOST_ROUNDS else 0
        return sorted(repeated + unsure[:count])

    def repaired(
        self,
        losses: Array,
        host: list[float],
        again: Callable[[list[int]], Array],
        probes: int | None,
        paid_for: Callable[[], int] | None = None,
    ) -> tuple[Array, list[float]]:
        """Return the losses of a step when what failed was evaluated again as far as policies go.

        Parameters
        ----------
        losses : array
        host : list of float
            The same on the host.
        again : callable
            Evaluates points, given by their numbers, and returns their losses.
        probes : int or None
            Number of points that make the estimate; the others lie along a line. None where
            there is no line.
        paid_for : callable, optional
            Returns how many evaluations the budget still pays for; by default all.

        Returns
        -------
        losses : array
        host : list of float
        """
        tried, before = 0, self.count
        self.inspect(host, range(len(host)))
        line = self._line(probes)
        while places := self.to_repeat(tried, line)[: paid_for() if paid_for else None]:
            self.pause(places, tried)
            losses = replace_losses(losses, places, again(places))
            host = _arrays.to_host(losses).tolist()
            self.learn(places, host)
            self.inspect(host, places)
            tried += 1
        self.settle(host, self.count - before)
        return losses, host

    def _line(self, probes: int | None) -> list[int]:
        """Return the points of a line that failed beside probes.

        A hole among the probes costs a part of the step, one along a line all of the search. Where
        all probes are well, a failure along the line says that it leads too far.
        """
        holes = self.open
        if probes is None or not holes or holes[0] >= probes:
            return []
        return [i for i in holes if i >= probes]

    def learn(self, places: Iterable[int], losses: list[float]) -> None:
        """Take what came of points that were evaluated again, before `inspect`."""
        unsure = self._unsure(places, "auto", "skip")
        self._repetition.learn(len(unsure), sum(math.isfinite(losses[i]) for i in unsure))

    def _unsure(self, places: Iterable[int], *policies: str) -> list[int]:
        """Return those of these points that failed in a way which has one of these policies."""
        return [i for i in places if i in self._open and self._policy(i) in policies]

    def _policy(self, place: int) -> Policy:
        return self.policy[_kind(self._open[place])]

    def _retry(self, place: int, tried: int) -> Retry | None:
        policy = self._policy(place)
        return policy if isinstance(policy, Retry) and tried < policy.times else None

    def pause(self, places: Iterable[int], tried: int) -> None:
        """Wait before these points are evaluated again, as the most patient policy says."""
        waits = [retry._pause(tried) for i in places if (retry := self._retry(i, tried))]
        if waits and max(waits) > 0:
            time.sleep(max(waits))

    def settle(self, losses: list[float], failed: int) -> None:
        """Leave out what is still open after so many failures of a step, or raise it."""
        for place, error in self._open.items():
            policy = self._policy(place)
            if isinstance(policy, Retry) and policy.then == "raise":
                raise error
        self._repetition.leave_out(len(self._open))
        self._open = {}
        self._follow(losses, failed)

    def _follow(self, losses: list[float], failed: int) -> None:
        """Count failures in a row, after `failed` of them at a step that ended with `losses`."""
        finite = [i for i, loss in enumerate(losses) if math.isfinite(loss)]
        self.in_a_row = len(losses) - 1 - finite[-1] if finite else self.in_a_row + failed

    @property
    def too_many(self) -> bool:
        """Whether so many evaluations failed in a row that the run must end."""
        return self.limit is not None and self.in_a_row >= self.limit

    def of_gradient(self, error: Exception) -> None:
        """Count a gradient that failed, or raise if the policy says so."""
        kind = _kind(error)
        if self.policy[kind] == "raise":
            raise error
        self._count("a gradient that is not finite" if kind == "non-finite" else _text(error))

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
            "repetition": tuple(self._repetition.state()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        for name in ("count", "gradients", "in_a_row"):
            check_count(name, state[name], 0)
        self.count, self.gradients = state["count"], state["gradients"]
        self.in_a_row, self.first = state["in_a_row"], state["first"]
        self._repetition.restore(state["repetition"])

    def note(self, before: tuple[int, str | None]) -> dict[str, Any]:
        """Return what is recorded with a step in which something failed."""
        count, first = before
        if self.count == count:
            return {}
        note = {"failed": self.count - count, "repetition": self._repetition.state()}
        return note if first is not None else note | {"first": self.first}

    def recall(self, failed: int, note: dict[str, Any], losses: list[float]) -> None:
        """Take over what is recorded with a step; raise ValueError if that is nothing."""
        first = note.get("first")
        if not isinstance(first, str | None):
            raise ValueError("it names no failure")
        self.count += failed
        self.first = self.first or first
        self._follow(losses, failed)
        if "repetition" in note:
            self._repetition.restore(note["repetition"])


def _kind(error: Exception) -> str:
    if isinstance(error, errors.NonFiniteLossError):
        return "non-finite"
    return "timeout" if isinstance(error, errors.EvaluationTimeoutError) else "exception"


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
