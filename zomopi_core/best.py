"""The best point of a run."""

from __future__ import annotations

import math
from typing import Any

from .candidates import Candidates


class Best:
    """The lowest loss seen and how to make its point again, without copying parameters.

    No step changes an array in place, so a reference to the iterate and the thin factors of the
    probe stand for the point.
    """

    def __init__(self, point: Any) -> None:
        self.loss = math.inf
        self.steps = 0  # taken when it was found
        self._point = point
        self._candidates: Candidates | None = None
        self._index = 0

    def offer(self, loss: float, steps: int, point: Any, margin: float = 0.0) -> None:
        """Take a point if its loss is the lowest within a margin; if finite at all."""
        if math.isfinite(loss) and loss < self.loss + margin:
            self.loss, self.steps, self._point, self._candidates = loss, steps, point, None

    def offer_candidates(self, losses: list[float], steps: int, candidates: Candidates) -> None:
        """Take the lowest loss of a step's points."""
        lowest = min(filter(math.isfinite, losses), default=math.inf)
        if lowest < self.loss:
            self.loss, self.steps, self._point = lowest, steps, None
            self._candidates, self._index = candidates, losses.index(lowest)

    def correct(self, loss: float) -> None:
        """Take a second evaluation at the point for its loss."""
        self.loss = loss if math.isfinite(loss) else math.inf

    @property
    def base(self) -> Any:
        """The parameters that are kept for it."""
        return self._point if self._candidates is None else self._candidates.params

    @property
    def point(self) -> Any:
        """The point, made again if it was one of a step's."""
        return self._point if self._candidates is None else self._candidates[self._index]
