"""A picture of a race, drawn with matplotlib."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import errors
from ._race_file import RaceRun
from ._race_oracle import checkpoints

if TYPE_CHECKING:
    from .race_result import RaceResult

# Okabe and Ito's colours, told apart by the colour-blind; with more methods the dashes change.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", ":", "-.")


def draw_race(file: Path, result: RaceResult) -> None:
    """Draw a panel for each problem: median loss against queries, quartiles as a band.

    Parameters
    ----------
    file : Path
        Where the picture goes; its suffix says in which format.
    result : RaceResult
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise errors.missing_extra("matplotlib", "cli") from error
    problems = result.problems
    if not problems:
        raise ValueError("there is no finished run to draw")
    columns = 2 if len(problems) == 4 else min(3, len(problems))
    rows = math.ceil(len(problems) / columns)
    figure = Figure(figsize=(4.6 * columns + 0.4, 3.7 * rows + 0.8), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    table = result.table()
    names = sorted({row.method for row in table}, key=[r.method for r in table].index)
    style = {
        name: (_COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)])
        for i, name in enumerate(names)
    }
    queries = np.asarray(checkpoints(result.budget))
    handles = {}
    for panel, problem in zip(panels, problems, strict=False):
        everything = []
        for row in table:
            if row.problem != problem:
                continue
            runs = [r for r in result.runs if (r.problem, r.method) == (problem, row.member)]
            losses = np.asarray([losses_at(run, queries) for run in runs])
            # infinite losses are not drawn, and their quartiles would be no numbers
            losses = np.where(np.isfinite(losses), losses, np.nan)
            if np.isnan(losses).any():
                seen = ~np.isnan(losses).any(axis=0)
                losses = np.where(seen, losses, np.nan)
            low, median, high = np.percentile(losses, (25, 50, 75), axis=0)
            colour, dash = style[row.method]
            (line,) = panel.plot(queries, median, color=colour, ls=dash, lw=1.8)
            panel.fill_between(queries, low, high, color=colour, alpha=0.18, lw=0)
            handles[row.method] = line
            everything.append(losses[np.isfinite(losses)])
        _finish_panel(panel, result, problem, np.concatenate(everything))
    for panel in panels[len(problems) :]:
        panel.set_axis_off()
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(4, len(handles)),
        frameon=False,
    )
    figure.savefig(file, dpi=110)


def losses_at(run: RaceRun, queries: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the losses of a run after so many queries; each holds until the next is better."""
    counts, losses = zip(*run.curve, strict=True)
    return np.asarray(losses)[np.searchsorted(counts, queries, side="right") - 1]


def _finish_panel(
    axes: Any, result: RaceResult, problem: str, losses: np.ndarray[Any, Any]
) -> None:
    runs = [run for run in result.runs if run.problem == problem]
    target = float(np.median([run.target for run in runs]))
    axes.set_xscale("log")
    positive = losses[losses > 0]
    # a loss that falls little is easier to read on a straight scale, and one below zero must be
    if positive.size == losses.size and positive.max() > 5 * positive.min():
        axes.set_yscale("log")
    if math.isfinite(target):
        axes.axhline(target, color="#555555", ls=(0, (4, 3)), lw=1)
        axes.annotate(
            "target",
            (0.01, target),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            color="#555555",
            fontsize=8,
        )
    axes.set_title(f"{problem} ({runs[0].unknowns:,} unknowns)", fontsize=11)
    axes.set_xlabel("queries")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3, lw=0.5)
    axes.spines[["top", "right"]].set_visible(False)
