"""Evaluations that fail: made again as far as `zomopi_core.failures` says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from zomopi_core import _arrays
from zomopi_core._checks import check_name
from zomopi_core._journal_rows import Row, failures_of, read_note
from zomopi_core.errors import NonFiniteLossError
from zomopi_core.failures import Failures, Retry
from zomopi_core.look import Length, Look, Size, look
from zomopi_core.losses import join_losses

from . import _torch_errors as errors

#: returns the losses at points of the step, given by their numbers
Evaluate = Callable[[list[int]], list[Any]]


def as_failures(on_failure: Any) -> Failures:
    """Return what `on_failure=` of the optimizer was given; exceptions of a closure are raised."""
    if not isinstance(on_failure, Retry):
        check_name("on_failure", on_failure, ("auto", "skip", "retry", "raise"))
    return Failures({"non-finite": on_failure})


class Repair:
    """The losses of a step while failures among them are evaluated again.

    Parameters
    ----------
    failures : Failures
    losses : list of float or 0-d tensor
        At all points of the step.
    evaluate : callable

    Attributes
    ----------
    losses : list
    joined : array of shape (points,)
        The same in one array.
    seen : Look or None
        What was read with the losses.
    rounds : list of list of int
        Numbers of the points that were evaluated again, in order.
    """

    def __init__(self, failures: Failures, losses: list[Any], evaluate: Evaluate) -> None:
        self.losses, self.joined = list(losses), join_losses(losses)
        self.rounds: list[list[int]] = []
        self.seen: Look | None = None
        self._host: list[float] | None = None
        self._failures, self._evaluate = failures, evaluate
        self._before = failures.count, failures.first

    @property
    def made(self) -> int:
        """Number of evaluations."""
        return len(self.losses) + sum(map(len, self.rounds))

    def look(
        self, sizes: Sequence[Size], probes: Sequence[Length], directions: Sequence[Length]
    ) -> None:
        """Read the losses, and what the tuning needs beside them, in one transfer."""
        self.seen = look([self.joined], sizes, probes, directions)
        (self._host,) = self.seen.numbers

    def run(self, step: int, probes: int) -> None:
        """Look at the losses, which waits for their device, and evaluate again what failed.

        Parameters
        ----------
        step : int
        probes : int
            Number of points that make the estimate; the others lie along a line.
        """
        host = self.host
        if math.isfinite(sum(host)):
            self._failures.in_a_row = 0
            return
        try:
            self.joined, _ = self._failures.repaired(self.joined, host, self._again, probes)
            self._host = None
        except NonFiniteLossError as error:
            error.add_note(f"losses of step {step}: {self.host}")
            raise

    @property
    def host(self) -> list[float]:
        """The losses as numbers, for which their device is waited for once."""
        if self._host is None:
            (self._host,) = _arrays.read([self.joined])
        return self._host

    def _again(self, places: list[int]) -> Any:
        found = self._evaluate(places)
        self.rounds.append(places)
        for place, loss in zip(places, found, strict=True):
            self.losses[place] = loss
        return join_losses(found)

    def note(self) -> dict[str, Any]:
        """Return what is recorded with the step."""
        return self._failures.note(self._before) | {"repeated": self.rounds}

    def recall(self, row: Row, move_to: Callable[[int], None]) -> None:
        """Follow a recorded step: in place, each evaluation leaves its rounding in the weights."""
        note = read_note(row)
        for place in itertools.chain(*_rounds(note.get("repeated", []), len(self.losses))):
            move_to(place)
        try:
            self._failures.recall(failures_of(row), note, self.host)
        except (TypeError, ValueError) as error:
            raise errors.wrong_journal(f"the note of step {row.step}: {error}") from error


def _rounds(value: Any, points: int) -> list[list[int]]:
    fits = isinstance(value, list) and all(
        isinstance(places, list) and all(type(i) is int and 0 <= i < points for i in places)
        for places in value
    )
    if not fits:
        raise errors.wrong_journal("what it says was repeated is no list of points")
    return list(value)
