"""What a race tells: medians and quartiles, a table, a comparison with another race, a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from . import errors
from ._race_file import RaceRun, read


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile.

    Attributes
    ----------
    low, median, high : float
        Infinity where so many of the runs did not get there.
    """

    low: float
    median: float
    high: float


class RaceRow(NamedTuple):
    """How one method did on one problem.

    Attributes
    ----------
    problem : str
    method : str
        The name of the grid, where the row is the best of its members.
    member : str
        The method itself.
    runs : int
        Number of seeds.
    failed : int
        How many of the runs ended with an exception.
    reached : int
        How many reached the target.
    queries : Quartiles
        Evaluations to the target.
    loss : Quartiles
        Final loss.
    seconds : float
        Median time of a run.
    target : float
        Loss that counts as solved (median of the seeds); minus infinity where there is none.
    """

    problem: str
    method: str
    member: str
    runs: int
    failed: int
    reached: int
    queries: Quartiles
    loss: Quartiles
    seconds: float
    target: float


class RaceChange(NamedTuple):
    """How one method on one problem did before and now.

    Attributes
    ----------
    problem, method : str
    before, now : RaceRow
    queries_ratio : float
        Median queries to the target, now over before; NaN where neither got there.
    loss_ratio : float
        Median final loss, now over before; NaN where both are zero or infinite.
    verdict : str
        ``"better"`` or ``"worse"`` where the medians differ and each lies outside of the other
        race's quartiles, else ``"same"``. Queries to the target decide, and the final loss where
        neither race got there.
    """

    problem: str
    method: str
    before: RaceRow
    now: RaceRow
    queries_ratio: float
    loss_ratio: float
    verdict: str


def quartiles(values: Sequence[float]) -> Quartiles:
    """Return the quartiles, linear between neighbours; infinite values are the largest."""
    ordered = sorted(values)

    def at(fraction: float) -> float:
        place = fraction * (len(ordered) - 1)
        low, part = ordered[math.floor(place)], place - math.floor(place)
        high = ordered[math.ceil(place)]
        # infinity minus infinity is no number
        return low if part == 0 or low == high else low + part * (high - low)

    return Quartiles(at(0.25), at(0.5), at(0.75))


@dataclass(frozen=True, repr=False)
class RaceResult:
    """Results of a race; printed, they are a table for each problem.

    Attributes
    ----------
    budget : int
        Evaluations that each run had.
    runs : list of RaceRun
        All finished runs, those of a file that was there before included.
    header : dict
        What is common to all runs: budget, backend, versions.
    interrupted : bool
        Whether Ctrl-C ended the race before its last run.
    """

    budget: int
    runs: list[RaceRun]
    header: dict[str, Any] = field(default_factory=dict)
    interrupted: bool = False

    @classmethod
    def load(cls, file: str | Path) -> RaceResult:
        """Return the results that a race wrote to a file.

        Parameters
        ----------
        file : str or Path
            What ``race(file=...)`` was given. A last line that an interruption cut off is left
            out.

        Raises
        ------
        ValueError
            If it is not a file of race results.
        """
        header, runs, size = read(Path(file))
        if not size:
            raise errors.not_a_race(file, "it is empty")
        return cls(header["budget"], runs, header)

    @property
    def problems(self) -> list[str]:
        """The names of the problems, in the order of the runs."""
        return list(dict.fromkeys(run.problem for run in self.runs))

    def table(self, members: bool = False) -> list[RaceRow]:
        """Return a row for each method on each problem, the best of a problem first.

        Parameters
        ----------
        members : bool
            Whether each member of a grid has a row; by default the grid has one, that of the
            member that did best on the problem.

        Returns
        -------
        list of RaceRow
            Sorted by the median of the queries to the target, then by that of the final loss.
        """
        rows = []
        for problem in self.problems:
            cells: dict[str, list[RaceRun]] = {}
            for run in self.runs:
                if run.problem == problem:
                    cells.setdefault(run.method, []).append(run)
            ranked = sorted((_row(runs) for runs in cells.values()), key=_rank)
            seen = set()
            for row in ranked:
                group = cells[row.member][0].group
                if members or group is None:
                    rows.append(row)
                elif group not in seen:  # the first is the best
                    seen.add(group)
                    rows.append(row._replace(method=group))
        return rows

    def compare(self, other: str | Path | RaceResult) -> list[RaceChange]:
        """Return how each method on each problem did in an earlier race and in this one.

        Parameters
        ----------
        other : str, Path or RaceResult
            The earlier race, or its file; what is not in both is left out.

        Returns
        -------
        list of RaceChange
            In the order of `table`.

        Raises
        ------
        ValueError
            If the budgets differ, or a problem of the same name is another one.
        """
        before = other if isinstance(other, RaceResult) else RaceResult.load(other)
        name = "the other race" if isinstance(other, RaceResult) else other
        if before.budget != self.budget:
            raise errors.other_race(name, "budget", before.budget, self.budget)
        defined = {(r.problem, r.seed): r.definition for r in before.runs}
        for run in self.runs:
            old = defined.get((run.problem, run.seed), run.definition)
            if old != run.definition:
                what = f"problem {run.problem} (seed {run.seed})"
                raise errors.other_race(name, what, old, run.definition)
        rows = {(row.problem, row.method): row for row in before.table()}
        return [
            _change(rows[row.problem, row.method], row)
            for row in self.table()
            if (row.problem, row.method) in rows
        ]

    def draw(self, file: str | Path) -> None:
        """Draw loss against queries, a panel for each problem: medians, and quartiles as bands.

        Parameters
        ----------
        file : str or Path
            Where the picture goes; its suffix (.png, .pdf, .svg) says in which format. Needs
            matplotlib (extra ``cli``).
        """
        from ._race_picture import draw_race

        draw_race(Path(file), self)

    def __repr__(self) -> str:
        failed = sum(run.error is not None for run in self.runs)
        return (
            f"<RaceResult: {len(self.runs)} runs of {self.budget:,} queries on "
            f"{len(self.problems)} problems, {failed} failed>"
        )

    def __str__(self) -> str:
        parts = []
        for problem in self.problems:
            rows = [row for row in self.table() if row.problem == problem]
            lines = [HEADER, *(cells(row, self.budget) for row in rows)]
            widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
            text = [
                "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip()
                for line in lines
            ]
            parts.append("\n".join([describe(self, problem), *text, *notes(rows)]))
        return "\n\n".join(parts)


def _row(runs: list[RaceRun]) -> RaceRow:
    to_target = [run.queries_to_target for run in runs]
    return RaceRow(
        runs[0].problem,
        runs[0].method,
        runs[0].method,
        len(runs),
        sum(run.error is not None for run in runs),
        sum(map(math.isfinite, to_target)),
        quartiles(to_target),
        quartiles([run.final for run in runs]),
        quartiles([run.seconds for run in runs]).median,
        quartiles([run.target for run in runs]).median,
    )


def _rank(row: RaceRow) -> tuple[float, float]:
    return row.queries.median, row.loss.median


def _change(before: RaceRow, now: RaceRow) -> RaceChange:
    queries = _ratio(now.queries.median, before.queries.median)
    loss = _ratio(now.loss.median, before.loss.median)
    reached = math.isfinite(min(before.queries.median, now.queries.median))
    old, new = (before.queries, now.queries) if reached else (before.loss, now.loss)
    verdict = "same"
    if new.median < old.low and old.median > new.high:
        verdict = "better"
    elif new.median > old.high and old.median < new.low:
        verdict = "worse"
    return RaceChange(now.problem, now.method, before, now, queries, loss, verdict)


def _ratio(now: float, before: float) -> float:
    if math.isinf(now) and math.isinf(before):
        return math.nan
    if before == 0:
        return math.nan if now == 0 else math.inf
    return now / before


HEADER = ("method", "queries to target", "final loss", "seconds")


def describe(result: RaceResult, problem: str) -> str:
    """Return a line on a problem."""
    runs = [run for run in result.runs if run.problem == problem]
    target = quartiles([run.target for run in runs]).median if runs else -math.inf
    start = quartiles([run.start for run in runs]).median
    seeds = len({run.seed for run in runs})
    aim = f", target {target:.4g}" if math.isfinite(target) else ""
    return (
        f"{problem}: {runs[0].unknowns:,} unknowns, loss {start:.4g} at the start{aim}; "
        f"{seeds} seed{'s' * (seeds > 1)}"
    )


def cells(row: RaceRow, budget: int) -> tuple[str, ...]:
    """Return a row as text: medians, with quartiles where they differ."""

    def count(value: float) -> str:
        return f"{value:,.0f}" if math.isfinite(value) else f"> {budget:,}"

    def loss(value: float) -> str:
        return f"{value:.3g}"

    return (
        row.method + (f" ({row.failed} of {row.runs} failed)" if row.failed else ""),
        _spread(row.queries, count) if math.isfinite(row.target) else "-",
        _spread(row.loss, loss),
        f"{row.seconds:.1f}",
    )


def _spread(values: Quartiles, text: Any) -> str:
    low, median, high = map(text, values)
    return median if low == median == high else f"{median} ({low} to {high})"


def notes(rows: Sequence[RaceRow]) -> list[str]:
    """Return what has to be said below a table: which member of a grid was best."""
    return [f"{row.method}: {row.member}" for row in rows if row.method != row.member]
