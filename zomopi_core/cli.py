"""The command line: ``zomopi run``, ``race``, ``show``, ``tail``, and what there is to list."""

from __future__ import annotations

import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from . import _arrays, catalog, errors, problems
from ._journal_cli import show_command, tail_command
from ._progress import format_loss
from ._race_cli import race_command
from .method import leaves_of
from .minimize import minimize
from .result import Result

app = typer.Typer(
    help="Minimise black-box functions of matrices.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PICTURES = {".png", ".pdf", ".svg"}


@app.command()
def run(
    problem: Annotated[str, typer.Argument(help="A name from: zomopi problems.")],
    backend: Annotated[
        str, typer.Option(help=f"Array library: {', '.join(_arrays.LIBRARIES)}.")
    ] = "numpy",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; by default the library's choice.")
    ] = None,
    method: Annotated[str, typer.Option(help="A name from: zomopi methods.")] = "zo-mopi",
    max_queries: Annotated[
        int, typer.Option(min=1, help="Evaluations of the loss, every one counted.")
    ] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the problem and all draws.")] = 0,
    save: Annotated[
        list[Path] | None,
        typer.Option(
            help="Picture (.png, .pdf, .svg) or parameters (.npz); may be given twice. "
            "By default zomopi-PROBLEM.png.",
        ),
    ] = None,
) -> None:
    """Solve a real problem from loss values alone, and draw the result."""
    console = Console()
    files = save or [Path(f"zomopi-{problem}.png")]
    try:
        if problem not in problems.names():
            raise errors.unknown_name("PROBLEM", problem, problems.names())
        for file in files:
            _check_target(file)
        xp, found = _arrays.backend(backend, device)
        chosen = catalog.find_method(method)
        task = problems.make(problem, xp, device=found, seed=seed)
        like = leaves_of(task.x0)[0]
        console.print(
            f"{problem}: {task.unknowns:,} parameters, {chosen.name} on {backend}"
            f" ({_arrays.device(like)}), {max_queries:,} queries"
        )
        began = time.perf_counter()
        result = minimize(
            task.fun,
            task.x0,
            method=method,  # by its name, which minimize tunes
            max_queries=max_queries,
            seed=seed,
            # a GPU computes all candidates of a step at once; on a CPU small arrays stay in cache
            vectorized=_arrays.on_gpu(like),
            progress=True,
        )
        seconds = time.perf_counter() - began
    except (ValueError, TypeError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    _report(console, task, result, seconds)
    for file in files:
        _save(file, task, result)
        console.print(f"saved {file}")
    if result.status == "interrupted":
        raise typer.Exit(130)


app.command("race")(race_command)
app.command("show")(show_command)
app.command("tail")(tail_command)


@app.command()
def info() -> None:
    """List the array libraries, their versions and the devices found."""
    console = Console()
    try:
        console.print(f"zomopi {version('zomopi')}")
    except PackageNotFoundError:  # run from a source tree that was not installed
        console.print("zomopi (not installed)")
    _print_table(console, ("backend", "version", "devices"), _arrays.describe_backends())


@app.command()
def methods() -> None:
    """List the methods, one line each."""
    _print_table(Console(), ("method", "what it does"), catalog.describe_methods())


@app.command("problems")
def list_problems() -> None:
    """List the problems, one line each."""
    rows = []
    for name in problems.names():
        try:
            problem = problems.make(name)
        except ImportError as error:  # the others do without what this one needs
            rows.append((name, "", str(error)))
        else:
            rows.append((name, f"{problem.unknowns:,}", problem.summary))
    _print_table(Console(), ("problem", "unknowns", "what it is"), rows)


def _print_table(console: Console, header: tuple[str, ...], rows: list[Any]) -> None:
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)


def _report(console: Console, task: problems.Problem, result: Result, seconds: float) -> None:
    rows = []
    if isinstance(task, problems.Digits):
        rows += [
            ("train accuracy", f"{task.accuracy(result.x, 'train'):.1%}"),
            ("test accuracy", f"{task.accuracy(result.x, 'test'):.1%}"),
        ]
    rows.append(("loss", format_loss(result.fun)))
    if task.noisy:
        rows.append(("loss without noise", format_loss(float(task.exact(result.x)))))
    rows += [
        ("target", format_loss(task.target)),
        ("queries", f"{result.nfev:,}"),
        ("seconds", f"{seconds:.1f}"),
    ]
    _print_table(console, ("result", ""), rows)
    if result.status != "max_queries":
        console.print(result.message)


def _check_target(file: Path) -> None:
    if file.suffix not in _PICTURES | {".npz"}:
        raise ValueError(f"--save {file}: the name must end in .png, .pdf, .svg or .npz")
    if not file.resolve().parent.is_dir():
        raise ValueError(f"--save {file}: there is no folder {file.parent}")


def _save(file: Path, task: problems.Problem, result: Result) -> None:
    if file.suffix == ".npz":
        import numpy as np

        named = result.x if isinstance(result.x, dict) else {"x": result.x}
        arrays: dict[str, Any] = {name: _arrays.to_host(x) for name, x in named.items()}
        np.savez(file, **arrays)
        return
    from ._picture import draw

    draw(file, task, result)
