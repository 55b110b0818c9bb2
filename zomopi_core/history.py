"""The history of a run: five numbers a step, of which losses may be fetched several at once.

What a device computes need not be waited for: the losses of the steps from one report to the next
stay where they are, and come to the host as one array.
"""

from __future__ import annotations

import math
from array import array
from typing import Any, NamedTuple

import numpy as np

from . import _arrays
from ._arrays import Array
from ._journal_rows import mean_of_finite

_COLUMNS = ("queries", "loss", "best", "learning_rate", "elapsed")
_LOSS = _COLUMNS.index("loss")


class Fetched(NamedTuple):
    """The losses of a step that was waited for."""

    losses: list[float]
    probes: int | None  # number of those that make the estimate, None for all

    @property
    def told(self) -> list[float]:
        """The losses that make the estimate."""
        return self.losses if self.probes is None else self.losses[: self.probes]


class History:
    """What is told of each step; a long run keeps nothing else."""

    def __init__(self) -> None:
        self._numbers = array("d")
        self._waiting: list[tuple[int, Array, int | None]] = []  # place of a loss, and its array

    def add(self, queries: int, loss: float, best: float, rate: float, elapsed: float) -> None:
        """Add a step."""
        self._numbers.extend((queries, loss, best, rate, elapsed))

    def add_waiting(
        self, losses: Array, probes: int | None, rest: tuple[int, float, float, float]
    ) -> None:
        """Add a step whose losses stay where they are; `rest` are its numbers beside the loss.

        The first `probes` of the losses make the estimate, by default all.
        """
        queries, best, rate, elapsed = rest
        self._waiting.append((len(self._numbers) + _LOSS, losses, probes))
        self.add(queries, math.nan, best, rate, elapsed)

    @property
    def waits(self) -> bool:
        """Whether losses are still to be fetched."""
        return bool(self._waiting)

    def fetch(self, *beside: Array) -> tuple[list[Fetched], list[list[float]]]:
        """Fetch all losses that are waited for, and others beside them, in one transfer."""
        waiting = self._waiting
        hosts = _arrays.read([*(losses for _, losses, _ in waiting), *beside])
        self._waiting = []
        late = []
        for (place, _, probes), losses in zip(waiting, hosts, strict=False):
            late.append(Fetched(losses, probes))
            self._numbers[place] = mean_of_finite(late[-1].told)
        return late, hosts[len(waiting) :]

    @property
    def last(self) -> list[float]:
        """The numbers of the last step, in the order of the columns."""
        return self._numbers[-len(_COLUMNS) :].tolist()

    def table(self) -> np.ndarray[Any, Any]:
        """Return one row a step."""
        return np.array(self._numbers).reshape(-1, len(_COLUMNS))

    def columns(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return one array for each of the numbers."""
        found = dict(zip(_COLUMNS, self.table().T, strict=True))
        found["queries"] = found["queries"].astype(np.int64)
        return found

    def restore(self, table: np.ndarray[Any, Any]) -> None:
        """Take over what `table` returned."""
        self._numbers = array("d", table.reshape(-1, len(_COLUMNS)).reshape(-1).tolist())
