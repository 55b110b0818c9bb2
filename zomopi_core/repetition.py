"""Whether it helps to evaluate again what failed, learned from the evaluations that were repeated.

Where calls fail by accident, a repetition is as good as a new point, and steps stay whole. Where F
is not defined at a point, it is a waste. The share of repetitions that succeed tells the two
apart; it is averaged over the last ones, and while it is low few are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# Least share of repetitions that succeed for all failures to be repeated.
_WORTH = 0.2
# Repetitions over which the share is averaged.
_MEMORY = 32.0
# What a run begins with: so many repetitions, of which so many succeeded. Thirteen failures in a
# row make it give up, which by accident happens to one run in 8,000.
_TRIES, _SUCCESSES = 10.0, 5.0
# Where it is not worth it, one failure of so many is repeated, in case that has changed.
_TRIAL = 16


class Repetition:
    """What the repetitions of a run have shown."""

    def __init__(self) -> None:
        self._tries, self._successes = _TRIES, _SUCCESSES
        self._left_out = 0  # failures since the last repetition

    def allowed(self, failures: int) -> int:
        """Return how many of so many failures are to be repeated next, at a time."""
        if self._successes >= _WORTH * self._tries:
            # No more than could fail before the share is too low.
            return min(failures, 1 + int(self._successes / _WORTH - self._tries))
        return min(failures, self._left_out // _TRIAL)

    def learn(self, tries: int, successes: int) -> None:
        """Take the outcome of repetitions that were made at a time."""
        for i in range(tries):
            kept = 1.0 - 1.0 / _MEMORY
            self._tries = kept * self._tries + 1.0
            self._successes = kept * self._successes + (i < successes)
        self._left_out = 0

    def leave_out(self, failures: int) -> None:
        """Count failures that were not repeated, or without success."""
        self._left_out += failures

    def state(self) -> list[float]:
        """Return all that was learned."""
        return [self._tries, self._successes, self._left_out]

    def restore(self, state: Sequence[float]) -> None:
        """Take over what `state` returned; raise ValueError if it is nothing of the kind."""
        tries, successes, left_out = map(float, state)
        if not (0 <= successes <= tries <= 2.0 * _MEMORY and 0 <= left_out < 2**53):
            raise ValueError(f"no state of repetitions: {state!r:.60}")
        self._tries, self._successes, self._left_out = tries, successes, math.floor(left_out)
