"""A recorded run as numbers to draw, and the drawing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import errors
from ._journal_rows import Row, failures_of
from ._snapshots import SnapshotFiles
from .point import Point

# Spectra of so many arrays are drawn.
_MOST_SPECTRA = 6


class History(NamedTuple):
    """What the rows of a journal say, one entry a step.

    Attributes
    ----------
    queries, losses, learning_rates, failures : list
        Failures are counted from the beginning.
    lowest : float
        The lowest mean loss of a step, or loss of an evaluation beside the steps.
    returns : int
        How often the run went back to its best point.
    """

    queries: list[int]
    losses: list[float]
    learning_rates: list[float]
    failures: list[int]
    lowest: float
    returns: int

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.queries)


def history_of(rows: list[Row]) -> History:
    """Return what is drawn of a run's rows."""
    failed, counts = 0, []
    for row in rows:
        failed += failures_of(row)
        if row.kind == "":
            counts.append(failed)
    steps = [row for row in rows if row.kind == ""]
    return History(
        [row.queries for row in steps],
        [row.loss for row in steps],
        [row.learning_rate for row in steps],
        counts,
        min((row.loss for row in rows if math.isfinite(row.loss)), default=math.nan),
        sum(row.kind == "guard" for row in rows),
    )


def momentum_spectra(journal: Path, header: dict[str, Any], rows: int) -> dict[str, Any]:
    """Return the singular values of each matrix's momentum, from the latest snapshot."""
    files = SnapshotFiles(journal, header["run"])
    for found in files.usable(rows, None, np.zeros(1), None):
        point = found.tree.get("point") if isinstance(found.tree, dict) else None
        if not isinstance(point, Point):
            continue
        names = header["names"] or ["x"]
        leaves = zip(names, point.state.leaves, strict=True)
        matrices = [(name, leaf.momentum) for name, leaf in leaves if leaf.momentum.ndim >= 2]
        matrices.sort(key=lambda pair: -pair[1].size)
        return {
            name: np.linalg.svd(m.reshape(-1, *m.shape[-2:])[0], compute_uv=False)
            for name, m in matrices[:_MOST_SPECTRA]
        }
    return {}


def draw_history(file: Path, title: str, history: History, spectra: dict[str, Any]) -> None:
    """Draw loss, learning rate, failures, and the spectrum of the momentum."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise errors.missing_extra("matplotlib", "cli") from error
    figure = Figure(figsize=(11, 7), layout="constrained")
    (loss, rate), (failures, spectrum) = figure.subplots(2, 2)
    figure.suptitle(title)
    _curve(loss, history.queries, history.losses, "loss (mean of a step's points)")
    _curve(rate, history.queries, history.learning_rates, "learning rate")
    failures.step(history.queries, history.failures, where="post", color="#cf222e", lw=1.3)
    failures.set_title("evaluations that failed")
    failures.set_ylim(bottom=0)
    failures.yaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, rate, failures):
        axes.set_xlabel("queries")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
    for name, values in spectra.items():
        spectrum.semilogy(range(1, len(values) + 1), values, marker=".", lw=1, label=name)
    spectrum.set_title("spectrum of the momentum")
    spectrum.set_xlabel("singular value")
    spectrum.xaxis.get_major_locator().set_params(integer=True)
    if len(spectra) > 1:
        spectrum.legend(frameon=False, fontsize=8)
    if not spectra:
        spectrum.text(0.5, 0.5, "no snapshot", ha="center", transform=spectrum.transAxes)
    for axes in (loss, rate, failures, spectrum):
        axes.grid(alpha=0.3, which="both", lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


def _curve(axes: Any, queries: list[int], values: list[float], title: str) -> None:
    shown = [v for v in values if math.isfinite(v)]
    positive = bool(shown) and min(shown) > 0
    axes.plot(queries, values, color="#08306b", lw=1.3)
    axes.set_yscale("log" if positive else "linear")
    axes.set_title(title)
