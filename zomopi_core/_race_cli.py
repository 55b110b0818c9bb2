"""The command ``zomopi race``."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .race import race
from .race_result import HEADER, RaceChange, RaceResult, cells, describe, notes

_PICTURES = {".png", ".pdf", ".svg"}


def race_command(
    problems: Annotated[
        str | None,
        typer.Option(help="Names with commas between them. By default a few small problems."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names with commas between them, see above. By default zo_mopi and zo_muon, and "
            "cma and scipy-lbfgsb if installed.",
        ),
    ] = None,
    budget: Annotated[
        int, typer.Option(min=1, help="Evaluations of the loss for each run, every one counted.")
    ] = 10_000,
    seeds: Annotated[
        str, typer.Option(help="Their number, or the seeds themselves with commas: 3, or 0,1,7.")
    ] = "3",
    file: Annotated[
        Path | None,
        typer.Option(
            help="Where the results are kept, and found again by the same command after an "
            "interruption."
        ),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Picture of loss against queries (.png, .pdf, .svg).")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="File of an earlier race to compare with.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    backend: Annotated[str, typer.Option(help="Array library of the problems.")] = "numpy",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; by default the library's choice.")
    ] = None,
) -> None:
    """Race methods on problems, with equal budgets of evaluations.

    Methods are those of `zomopi methods` that need no gradient, with options as
    in zo_muon:learning_rate=0.01:schedule=linear. Of several values, as in
    learning_rate=0.001/0.01/0.1, the best on each problem is shown. With the
    extra bench: cma, cma-separable, nevergrad-ngopt, nevergrad-spsa,
    scipy-lbfgsb, evosax-openes, poem.

    Tables give medians over the seeds, and the quartiles in brackets.
    """
    console = Console()
    try:
        for option, path in (("--file", file), ("--save", save)):
            _check_target(option, path)
        earlier = None if compare is None else _load(compare)
        result = race(
            problems,
            methods,
            budget=budget,
            seeds=_seeds(seeds),
            file=file,
            backend=backend,
            device=device,
            workers=workers,
            progress=True,
        )
        changes = [] if earlier is None else result.compare(earlier)
    except (ValueError, TypeError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    _report(console, result)
    if earlier is not None:
        _report_changes(console, changes, str(compare))
    if save is not None and result.runs:
        result.draw(save)
        console.print(f"saved {save}", soft_wrap=True)
    if result.interrupted:
        if file is None:
            console.print("Interrupted. With --file a race goes on where it stopped.")
        else:
            console.print(
                f"Interrupted; the finished runs are in {escape(shlex.quote(str(file)))}. The "
                "same command goes on from there."
            )
        raise typer.Exit(130)


def _load(file: Path) -> RaceResult:
    try:
        return RaceResult.load(file)
    except OSError as error:
        raise ValueError(f"--compare {file}: {error.strerror}") from error


def _seeds(text: str) -> int | list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"--seeds must be numbers with commas, got {text!r}") from None
    return numbers if "," in text else numbers[0]


def _check_target(option: str, file: Path | None) -> None:
    if file is None:
        return
    if option == "--save" and file.suffix not in _PICTURES:
        raise ValueError(f"{option} {file}: the name must end in .png, .pdf or .svg")
    if not file.resolve().parent.is_dir():
        raise ValueError(f"{option} {file}: there is no folder {file.parent}")


def _report(console: Console, result: RaceResult) -> None:
    table = result.table()
    for problem in result.problems:
        rows = [row for row in table if row.problem == problem]
        console.print(f"\n{escape(describe(result, problem))}")
        _print_table(console, HEADER, [cells(row, result.budget) for row in rows])
        for note in notes(rows):
            console.print(escape(note), style="dim")
    for run in result.runs:
        if run.error is not None:
            name = f"{run.method} on {run.problem}, seed {run.seed}"
            console.print(f"failed: {escape(name)}: {escape(run.error)}")


def _report_changes(console: Console, changes: list[RaceChange], earlier: str) -> None:
    console.print(f"\nnow over {escape(earlier)} (medians)")
    header = ("problem", "method", "queries to target", "final loss", "verdict")
    rows = [
        (c.problem, c.method, _ratio(c.queries_ratio), _ratio(c.loss_ratio), c.verdict)
        for c in changes
    ]
    _print_table(console, header, rows)


def _ratio(value: float) -> str:
    return "-" if math.isnan(value) else f"x {value:.3g}"


def _print_table(console: Console, header: tuple[str, ...], rows: list[Any]) -> None:
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
