"""``zomopi show`` and ``zomopi tail``: what a journal says of its run."""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ._header import check_header
from ._journal_file import JournalReader, read_journal
from ._journal_picture import History, draw_history, history_of, momentum_spectra
from ._journal_rows import Row, failures_of, read_note
from ._progress import format_loss
from .stopping import MESSAGES

_PICTURES = {".png", ".pdf", ".svg"}
_POLL_SECONDS = 0.2


def show_command(
    journal: Annotated[Path, typer.Argument(help="A journal, also of a run that is alive.")],
    save: Annotated[
        Path | None,
        typer.Option(help="Picture (.png, .pdf, .svg). By default JOURNAL.png."),
    ] = None,
) -> None:
    """Sum up a recorded run, and draw it."""
    console = Console()
    file = save or journal.with_name(f"{journal.name}.png")
    try:
        if file.suffix not in _PICTURES:
            raise ValueError(f"--save {file}: the name must end in .png, .pdf or .svg")
        header, numbered = read_journal(journal)
        check_header(header)
        rows = [row for _, row in numbered]
        history = history_of(rows)
        spectra = momentum_spectra(journal, header, len(rows))
        table = Table("run", "", box=None, pad_edge=False, expand=False)
        for row in _summary(header, rows, history):
            table.add_row(*map(escape, row))
        console.print(table)
        draw_history(file, journal.name, history, spectra)
    except (ValueError, OSError, ImportError) as error:
        raise typer.BadParameter(str(error)) from error
    console.print(f"saved {escape(str(file))}", soft_wrap=True)


def _summary(header: dict[str, Any], rows: list[Row], history: History) -> list[tuple[str, str]]:
    entries = sum(math.prod(shape) for shape in header["shapes"])
    arrays = len(header["shapes"])
    where = header["surroundings"]
    ends = [row for row in rows if row.kind == "stop"]
    status = str(read_note(ends[-1]).get("status")) if ends else ""
    last = rows[-1] if rows else None
    rate = history.learning_rates[-1] if history.steps else math.nan
    return [
        ("status", MESSAGES.get(status, "not finished: going on, or to be resumed")),
        ("driver", header["driver"]),
        ("begun", header["created"]),
        ("method", header["method_name"]),
        ("parameters", f"{entries:,} in {arrays} array{'s' * (arrays > 1)}"),
        ("computed by", f"{where.get('library')} {where.get('version')}, {where.get('device')}"),
        ("random numbers", f"{header['sampler']['name']}, seed {header['sampler']['seed']}"),
        ("steps", f"{history.steps:,}"),
        ("queries", f"{last.queries if last else 0:,}"),
        ("failures", f"{sum(map(failures_of, rows)):,}"),
        ("ways back", f"{history.returns:,}"),
        ("loss", format_loss(history.losses[-1] if history.steps else math.nan)),
        ("lowest loss", format_loss(history.lowest)),
        ("learning rate", f"{rate:.4g}"),
        ("seconds", f"{last.elapsed if last else 0.0:,.1f}"),
    ]


def tail_command(
    journal: Annotated[Path, typer.Argument(help="The journal of a run that is alive.")],
    lines: Annotated[int, typer.Option(min=0, help="Recorded steps to begin with.")] = 10,
    follow: Annotated[
        bool, typer.Option(help="Whether to wait for more until the run ends.")
    ] = True,
) -> None:
    """Follow a run from another terminal, a line for each step."""
    console = Console(highlight=False)
    try:
        with (
            contextlib.closing(JournalReader(journal)) as reader,
            contextlib.suppress(KeyboardInterrupt),
        ):
            check_header(reader.header)
            console.print(f"{'step':>8} {'queries':>10} {'loss':>12} {'rate':>10} {'seconds':>10}")
            rows = [row for _, row in reader.rows()]
            steps = [row for row in rows if row.kind == ""]
            _print_steps(console, steps[len(steps) - lines :] if lines < len(steps) else steps)
            while not (ended := _end(rows)) and follow:
                time.sleep(_POLL_SECONDS)
                rows = [row for _, row in reader.rows()]
                _print_steps(console, [row for row in rows if row.kind == ""])
            if ended:
                console.print(ended)
    except (ValueError, OSError) as error:
        raise typer.BadParameter(str(error)) from error


def _end(rows: list[Row]) -> str:
    status = next((str(read_note(row).get("status")) for row in rows if row.kind == "stop"), "")
    return MESSAGES.get(status, status)


def _print_steps(console: Console, rows: list[Row]) -> None:
    for row in rows:
        failed = failures_of(row)
        console.print(
            f"{row.step + 1:>8} {row.queries:>10} {format_loss(row.loss):>12} "
            f"{row.learning_rate:>10.3g} {row.elapsed:>10.1f}"
            + (f"  {failed} failed" if failed else "")
        )
