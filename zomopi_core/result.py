"""What a run tells: after each step, and at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from . import _arrays


class Iteration(NamedTuple):
    """What a callback gets after each step, or with `report_every` at each report.

    Attributes
    ----------
    step : int
        Number of steps taken.
    queries : int
        Evaluations of the function so far.
    x : array or dict of arrays
        The iterate; not to be changed in place.
    loss : float
        Mean loss of the step's points, NaN where none was finite.
    best : float
        Lowest loss seen.
    learning_rate : float
        Learning rate of the step (of the first matrix).
    elapsed : float
        Seconds since the start.
    """

    step: int
    queries: int
    x: Any
    loss: float
    best: float
    learning_rate: float
    elapsed: float


@dataclass(frozen=True, repr=False)
class Result:
    """Outcome of `minimize`.

    Attributes
    ----------
    x : array or dict of arrays
        The best point seen, in the form of `x0`. Under bounds or a projection the best iterate. Of
        a noisy function the last iterate, unless the best point is lower by more than noise.
        Where noise hides the minimum an average of the last ones, unless the last is lower by more
        than noise.
    fun : float
        Its loss. Where a second evaluation there gives another value (a noisy function), it is
        that second value; infinity if there was no finite one. Of an average, if the run was cut
        short before it was evaluated, the lowest value that a line search has measured.
    x_last : array or dict of arrays
        The last iterate.
    nfev : int
        Evaluations of the function, every one counted.
    nit : int
        Steps taken.
    success : bool
        Whether the run ended as asked: by budget, time, stagnation, the callback or the target;
        False after an interruption or too many failures, if a target was given and not reached,
        and if no evaluation gave a finite loss.
    status : str
        ``"max_queries"``, ``"max_steps"``, ``"max_time"``, ``"target"``, ``"stagnation"``,
        ``"callback"``, ``"failures"`` or ``"interrupted"``; ``"failed"`` in the result that an
        exception carries.
    message : str
        The same in a sentence, and how many evaluations failed, if any.
    history : dict of str to numpy.ndarray
        One entry a step: ``"queries"``, ``"loss"``, ``"best"``, ``"learning_rate"`` and
        ``"elapsed"`` (seconds), as in `Iteration`.
    returns : tuple of int
        Numbers of the steps after which the iterate went back to the best point, because the
        loss had been far above it for long, and the learning rate fell.
    """

    x: Any
    fun: float
    x_last: Any
    nfev: int
    nit: int
    success: bool
    status: str
    message: str
    history: dict[str, np.ndarray[Any, Any]] = field(compare=False)
    returns: tuple[int, ...] = ()

    def __repr__(self) -> str:
        names = ("message", "success", "status", "fun", "nfev", "nit")
        lines = [f"{name:>8}: {getattr(self, name)}" for name in names]
        return "\n".join([*lines, f"{'x':>8}: {_describe(self.x)}"])


def _describe(x: Any) -> str:
    if isinstance(x, Mapping):
        return ", ".join(f"{name} {_describe(value)}" for name, value in x.items())
    return f"array of shape {tuple(x.shape)}, {_arrays.dtype_name(x)}"
