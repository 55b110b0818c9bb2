"""A live progress bar for `minimize`, drawn with rich."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

from . import errors


def format_loss(loss: float) -> str:
    """Return a loss in at most nine characters."""
    return f"{loss:.4g}" if math.isfinite(loss) else str(loss)


class _Silent:
    """Shows nothing."""

    def __enter__(self) -> None:
        """Return nothing to show with."""

    def __exit__(self, *error: object) -> None:
        """Do nothing."""


class _Bar:
    """A bar over the limit that is given, on standard error."""

    def __init__(self, measure: str, limit: float) -> None:
        try:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        except ImportError as error:
            raise errors.missing_extra("rich", "cli") from error
        self._measure, self._limit = measure, limit
        self._bar = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
            console=Console(file=sys.stderr),
            expand=True,
        )
        self._task = self._bar.add_task("", total=limit, text="")

    def show(self, iteration: Any) -> None:
        rate = iteration.queries / iteration.elapsed if iteration.elapsed > 0 else 0.0
        text = (
            f"{iteration.queries:,} queries  loss {format_loss(iteration.loss)}  "
            f"best {format_loss(iteration.best)}  {rate:,.0f}/s"
        )
        self._bar.update(self._task, completed=getattr(iteration, self._measure), text=text)

    def __enter__(self) -> Callable[[Any], None]:
        self._bar.start()
        return self.show

    def __exit__(self, kind: object, *error: object) -> None:
        if kind is None:  # what is left of the budget does not pay for a step
            self._bar.update(self._task, completed=self._limit)
        self._bar.stop()


def progress_display(
    wanted: bool, max_queries: int | None, max_steps: int | None, max_time: float | None
) -> _Silent | _Bar:
    """Return a context whose value shows an `Iteration`; it does nothing unless `wanted`."""
    if not wanted:
        return _Silent()
    limits = {"queries": max_queries, "step": max_steps, "elapsed": max_time}
    return _Bar(*next((name, limit) for name, limit in limits.items() if limit is not None))
