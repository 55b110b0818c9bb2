"""Pictures of results, drawn with matplotlib."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from . import _arrays, errors
from .problems import Digits, PhaseMask, Problem
from .result import Result

_ROWS, _COLUMNS = 5, 8
_RIGHT, _WRONG = "#1a7f37", "#cf222e"


def draw(file: Path, problem: Problem, result: Result) -> None:
    """Draw a result: its loss against queries, and what there is to see of the problem.

    Parameters
    ----------
    file : Path
        Where the picture goes; its suffix says in which format.
    problem : Problem
    result : Result
    """
    if isinstance(problem, Digits):
        draw_digits(file, problem, result)
    elif isinstance(problem, PhaseMask):
        draw_phase_mask(file, problem, result)
    else:
        figure = _new_figure((7, 5.4))
        _draw_curve(figure.subplots(), problem, result)
        figure.savefig(file, dpi=110)


def draw_digits(file: Path, problem: Digits, result: Result) -> None:
    """Draw loss against queries, and test digits with their predictions.

    Parameters
    ----------
    file : Path
        Where the picture goes; its suffix says in which format.
    problem : Digits
    result : Result
    """
    figure = _new_figure((12, 5.4))
    parts = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.15), wspace=0.03)
    curve, gallery = parts[0]
    accuracy = problem.accuracy(result.x, "test")
    _draw_curve(curve.subplots(), problem, result)

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
        _strip(cell)
    figure.savefig(file, dpi=110)


def draw_phase_mask(file: Path, problem: PhaseMask, result: Result) -> None:
    """Draw loss against queries, the mask, and the focus on the camera before and after.

    Parameters
    ----------
    file : Path
        Where the picture goes; its suffix says in which format.
    problem : PhaseMask
    result : Result
    """
    figure = _new_figure((12, 5.4))
    parts = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.15), wspace=0.03)
    curve, gallery = parts[0]
    _draw_curve(curve.subplots(), problem, result)

    cells = gallery.subplots(2, 2)
    for row, (x, when) in zip(cells, ((problem.x0, "before"), (result.x, "after")), strict=True):
        phases = _arrays.to_host(x)
        image = _arrays.to_host(problem.camera(x))
        size, half = image.shape[0], 8  # the speckles lie within a few pixels of the axis
        window = slice(size // 2 - half, size // 2 + half + 1)
        mask = row[0].imshow(phases % (2 * math.pi), cmap="twilight", vmin=0, vmax=2 * math.pi)
        row[0].set_title(f"mask {when}")
        light = row[1].imshow(image[window, window], cmap="inferno", vmin=0, vmax=1)
        row[1].set_title(f"focus {when}: {image[size // 2, size // 2]:.0%} of the best")
        bar = figure.colorbar(mask, ax=row[0], ticks=[0, math.pi, 2 * math.pi], shrink=0.9)
        bar.ax.set_yticklabels(["0", "π", "2π"])
        figure.colorbar(light, ax=row[1], shrink=0.9)
        for cell in row:
            _strip(cell)
    figure.savefig(file, dpi=110)


def _new_figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise errors.missing_extra("matplotlib", "cli") from error
    return Figure(figsize=size, layout="constrained")


def _draw_curve(axes: Any, problem: Problem, result: Result) -> None:
    history = result.history
    axes.semilogy(history["queries"], history["best"], color="#9ecae1", lw=5, label="best seen")
    axes.semilogy(history["queries"], history["loss"], color="#08306b", lw=1.3, label="step mean")
    axes.axhline(problem.target, color="#57606a", lw=1, ls="--", label="target")
    axes.set_xlabel("queries (evaluations of the loss)")
    axes.set_ylabel(f"loss ({problem.loss_name})")
    axes.set_title("Loss against queries, no gradient anywhere")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3, which="both", lw=0.5)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _strip(cell: Any) -> None:
    cell.set_xticks([])
    cell.set_yticks([])
    for spine in cell.spines.values():
        spine.set_color("#d0d7de")
