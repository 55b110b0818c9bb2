"""A live line for a race, drawn with rich."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import errors
from ._progress import format_loss

_PAUSE = 0.1  # seconds between two updates; more often nobody can read


class RaceProgress:
    """Shows which run is at work and how far all of them are; nothing without a bar."""

    def __init__(self, bar: Any = None, task: Any = None, budget: int = 0) -> None:
        self._bar, self._task, self._budget = bar, task, budget
        self._finished = 0
        self._last = 0.0

    def begin(self, problem: str, method: str, seed: int) -> Callable[[int, float], None] | None:
        """Name the run, and return what shows its queries and its loss."""
        if self._bar is None:
            return None
        name = f"{problem}  {method}  seed {seed}"
        self._bar.update(self._task, text=name)

        def show(queries: int, loss: float) -> None:
            if time.monotonic() - self._last >= _PAUSE:
                self._last = time.monotonic()
                done = self._finished * self._budget + queries
                text = f"{name}  loss {format_loss(loss)}"
                self._bar.update(self._task, completed=done, text=text)

        return show

    def end(self) -> None:
        """Count a finished run; one that ended early counts as whole."""
        self._finished += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._finished * self._budget)


@contextlib.contextmanager
def race_progress(wanted: bool, runs: int, budget: int) -> Iterator[RaceProgress]:
    """Show a race of so many runs on standard error, if that is `wanted`."""
    if not wanted or not runs:
        yield RaceProgress()
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise errors.missing_extra("rich", "cli") from error
    bar = Progress(
        TextColumn("{task.percentage:>3.0f}%"),
        BarColumn(bar_width=12),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True),
        console=Console(file=sys.stderr),
    )
    with bar:
        yield RaceProgress(bar, bar.add_task("", total=runs * budget, text=""), budget)
