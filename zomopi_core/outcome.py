"""What a run comes to: chosen between the best point and the last iterates, and told."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING

from .result import Result
from .stopping import MESSAGES, UNSUCCESSFUL

if TYPE_CHECKING:
    from .run import Run

# Noise levels within which two losses, of one evaluation each, are as good as equal.
_EQUAL = 3.0
# Those by which two of them differ for a reason.
_CHANCE = 6.0


def settle(run: Run, status: str) -> None:
    """Choose between the best point seen and the last iterates by fresh evaluations."""
    if not run.spare or status == "target":
        return
    best, optimizer = run.best, run.optimizer
    _complete(run)
    if run.affords(1) and math.isfinite(best.loss):
        again = run.evaluate_best("best")
        if math.isfinite(again):  # a failure is no loss
            best.correct(again)
    if run.affords(1) and optimizer.nit:
        last = optimizer.x
        # Between equals the outcome of more evaluations: the last iterate before the best of
        # single points, but an average of iterates before the last one.
        averages = optimizer.estimate is not last
        margin = (-_CHANCE if averages else _EQUAL) * optimizer.noise
        best.offer(run.evaluate_at("last", last), optimizer.nit, last, margin)


def _complete(run: Run) -> None:
    """Let what the optimizer remembers be the best point, where that gave way to it.

    The lowest loss was luck, so that what line searches have measured takes its place.
    """
    best, point = run.best, run.optimizer._point
    if best.gave_way and point.tuning is not None:
        best.take(point.tuning.descent.lowest, point.best)


def _remarks(run: Run) -> str:
    """Return sentences on failures and divergences, empty if there were none."""
    remarks = run.failures.describe(run.objective.calls)
    if run.guard is not None and run.guard.returns:
        times = len(run.guard.returns)
        remarks += (
            f" {times} times the loss stayed far above the best, and the run went back to the "
            "best point and on with a shorter step."
        )
    return remarks


def result_of(run: Run, status: str, message: str | None = None) -> Result:
    """Return what was reached."""
    with contextlib.suppress(Exception):  # of a device, whose losses then stay unknown
        run.report()
    _complete(run)
    best, optimizer = run.best, run.optimizer
    success = status not in UNSUCCESSFUL and math.isfinite(best.loss)
    if run.rules.target is not None:
        success = success and best.loss <= run.rules.target
    x, last = run.ownership.given(best, optimizer.x)
    return Result(
        x,
        best.loss,
        last,
        run.objective.calls,
        optimizer.nit,
        success,
        status,
        (message or MESSAGES[status]) + _remarks(run),
        run.history.columns(),
        () if run.guard is None else tuple(run.guard.returns),
    )
