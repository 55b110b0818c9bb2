"""The best point of a run."""

from __future__ import annotations

import math
from typing import Any

from .candidates import Candidates


class Best:
    """The lowest loss seen and how to make its point again, without copying parameters.

    No step changes an array in place, so a reference to the iterate and the thin factors of the
    probe stand for the point. Where noise hides the minimum the optimizer remembers an average of
    iterates, a better point than the luckiest one: this one gives way to it, and only the loss is
    noted from then on.

    Parameters
    ----------
    point : array or dict of arrays
        Where the run begins.

    Attributes
    ----------
    loss : float
        The lowest one seen, or what came of a second evaluation.
    steps : int
        Number of steps taken when it was found.
    gave_way : bool
        Whether there is no point to the loss.
    """

    def __init__(self, point: Any) -> None:
        self.loss = math.inf
        self.steps = 0
        self.gave_way = False
        self._point = point
        self._candidates: Candidates | None = None
        self._index = 0

    def offer(self, loss: float, steps: int, point: Any, margin: float = 0.0) -> None:
        """Take a point if its loss is the lowest within a margin; if finite at all."""
        if math.isfinite(loss) and loss < self.loss + margin:
            self._note(loss, steps, point)

    def offer_candidates(self, losses: list[float], steps: int, candidates: Candidates) -> None:
        """Take the lowest loss of a step's points."""
        lowest = min(filter(math.isfinite, losses), default=math.inf)
        if lowest < self.loss:
            self._note(lowest, steps, None, candidates, losses.index(lowest))

    def _note(
        self,
        loss: float,
        steps: int,
        point: Any,
        candidates: Candidates | None = None,
        index: int = 0,
    ) -> None:
        self.loss, self.steps = loss, steps
        if not self.gave_way:
            self._point, self._candidates, self._index = point, candidates, index

    def correct(self, loss: float) -> None:
        """Take a second evaluation at the point for its loss."""
        self.loss = loss if math.isfinite(loss) else math.inf

    def give_way(self) -> None:
        """Forget the point."""
        self._point, self._candidates, self.gave_way = None, None, True

    def take(self, loss: float, point: Any) -> None:
        """Let a point be the best one, with this loss, whatever was seen."""
        self.loss, self._point, self._candidates, self.gave_way = loss, point, None, False

    @property
    def base(self) -> Any:
        """The parameters that are kept for it, None where it gave way."""
        return self._point if self._candidates is None else self._candidates.params

    @property
    def is_made(self) -> bool:
        """Whether each look at `point` makes it anew."""
        return self._candidates is not None

    @property
    def point(self) -> Any:
        """The point, made again if it was one of a step's; None where it gave way."""
        return self._point if self._candidates is None else self._candidates[self._index]

    def state(self) -> dict[str, Any]:
        """Return the loss and the point."""
        return {"loss": self.loss, "steps": self.steps, "point": self.point}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        self.take(state["loss"], state["point"])
        self.steps, self.gave_way = state["steps"], state["point"] is None
