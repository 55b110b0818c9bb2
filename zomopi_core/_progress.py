"""A live progress bar for `minimize`, drawn with rich."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

from . import errors


def format_loss(loss: float) -> str:
    """Return a loss in at most nine characters."""
    return f"{loss:.4g}" if math.isfinite(loss) else str(loss)


@contextlib.contextmanager
def progress_display(
    wanted: bool, max_queries: int | None, max_steps: int | None, max_time: float | None
) -> Iterator[Callable[[Any], None]]:
    """Yield a function that shows an `Iteration`; it does nothing unless `wanted`."""
    if not wanted:
        yield lambda iteration: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError as error:
        raise errors.missing_extra("rich", "cli") from error
    limits = {"queries": max_queries, "step": max_steps, "elapsed": max_time}
    measure, limit = next((name, value) for name, value in limits.items() if value is not None)
    bar = Progress(
        BarColumn(bar_width=None),
        TextColumn("{task.fields[text]}"),
        TimeRemainingColumn(compact=True),
        console=Console(file=sys.stderr),
        expand=True,
    )
    task = bar.add_task("", total=limit, text="")

    def show(iteration: Any) -> None:
        rate = iteration.queries / iteration.elapsed if iteration.elapsed > 0 else 0.0
        text = (
            f"{iteration.queries:,} queries  loss {format_loss(iteration.loss)}  "
            f"best {format_loss(iteration.best)}  {rate:,.0f}/s"
        )
        bar.update(task, completed=getattr(iteration, measure), text=text)

    with bar:
        yield show
        bar.update(task, completed=limit)  # what is left of the budget does not pay for a step
