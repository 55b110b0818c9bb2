"""Pictures of results, drawn with matplotlib."""

from __future__ import annotations

from pathlib import Path

from . import errors
from .problems import Digits
from .result import Result

_ROWS, _COLUMNS = 5, 8
_RIGHT, _WRONG = "#1a7f37", "#cf222e"


def draw_digits(file: Path, problem: Digits, result: Result) -> None:
    """Draw loss against queries, and test digits with their predictions.

    Parameters
    ----------
    file : Path
        Where the picture goes; its suffix says in which format.
    problem : Digits
    result : Result
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise errors.missing_extra("matplotlib", "cli") from error
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    parts = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.15), wspace=0.03)
    curve, gallery = parts[0]
    accuracy = problem.accuracy(result.x, "test")

    axes = curve.subplots()
    history = result.history
    axes.semilogy(history["queries"], history["best"], color="#9ecae1", lw=5, label="best seen")
    axes.semilogy(history["queries"], history["loss"], color="#08306b", lw=1.3, label="step mean")
    axes.set_xlabel("queries (evaluations of the loss)")
    axes.set_ylabel("training loss (cross-entropy)")
    axes.set_title("Loss against queries, no gradient anywhere")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3, which="both", lw=0.5)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)

    pictures, predictions, digits = problem.pictures(result.x, _ROWS * _COLUMNS)
    gallery.suptitle(f"Test digits and predictions: {accuracy:.1%} of all are right")
    cells = gallery.subplots(_ROWS, _COLUMNS).ravel()
    for cell, picture, predicted, digit in zip(cells, pictures, predictions, digits, strict=True):
        cell.imshow(picture, cmap="gray_r", interpolation="nearest")
        right = predicted == digit
        cell.set_title(
            f"{predicted}" if right else f"{predicted}, is {digit}",
            color=_RIGHT if right else _WRONG,
            fontsize=13,
            fontweight="bold",
            pad=3,
        )
        cell.set_xticks([])
        cell.set_yticks([])
        for spine in cell.spines.values():
            spine.set_color("#d0d7de")
    figure.savefig(file, dpi=110)
