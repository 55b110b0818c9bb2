"""Draw what `asv publish` wrote as one page without scripts: ``python results_page.py FOLDER``.

asv's own page loads its scripts from the web; this one, ``results.html`` beside it, needs none.
"""

from __future__ import annotations

import html
import itertools
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

WIDTH, HEIGHT, MARGIN = 220, 36, 4

STYLE = """
body { font-family: sans-serif; margin: 2em; color: #222; background: #fff; }
table { border-collapse: collapse; margin-bottom: 2em; }
td, th { padding: 0.2em 0.8em; text-align: left; border-bottom: 1px solid #ddd; }
td.number { white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; }
polyline { fill: none; stroke: #1f6fb2; stroke-width: 1.5; }
circle { fill: #1f6fb2; }
"""

HEAD = (
    "<tr><th>benchmark<th>parameters<th>machine<th>last<th>over the one before"
    "<th>commit<th>from 0, by commit</tr>"
)


class Series(NamedTuple):
    """One benchmark with one choice of its parameters on one machine, by number of commit."""

    benchmark: str
    parameters: str
    machine: str
    unit: str
    points: list[tuple[int, float]]


def series_of(published: Path) -> list[Series]:
    """Return what a published folder holds, without what was never measured."""
    index = json.loads((published / "index.json").read_text(encoding="utf-8"))
    found = []
    for name, benchmark in sorted(index["benchmarks"].items()):
        choices = [", ".join(c) for c in itertools.product(*benchmark["params"])] or [""]
        for file in sorted((published / "graphs").rglob(f"{name}.json")):
            folders = file.relative_to(published / "graphs").parts
            if folders[0] == "summary":  # means over all parameters
                continue
            machine = next((f.removeprefix("machine-") for f in folders if "machine-" in f), "")
            rows = json.loads(file.read_text(encoding="utf-8"))
            for i, parameters in enumerate(choices):
                points = [(commit, _entry(values, i)) for commit, values in rows]
                known = [(commit, value) for commit, value in points if value is not None]
                if known:
                    unit = benchmark["unit"]
                    found.append(Series(name, parameters, machine, unit, known))
    return found


def _entry(values: Any, i: int) -> float | None:
    return values[i] if isinstance(values, list) else values


def curve(points: list[tuple[int, float]]) -> str:
    """Return a curve as SVG, from zero to its largest value."""
    first, last = points[0][0], points[-1][0]
    top = max(value for _, value in points) or 1.0
    places = [
        (
            MARGIN + (WIDTH - 2 * MARGIN) * (commit - first) / max(last - first, 1),
            HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top,
        )
        for commit, value in points
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    return (
        f'<svg width="{WIDTH}" height="{HEIGHT}"><polyline points="{line}"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5"/></svg>'
    )


def page(published: Path) -> str:
    """Return the page."""
    index = json.loads((published / "index.json").read_text(encoding="utf-8"))
    commits = {int(number): name for number, name in index["revision_to_hash"].items()}
    parts = []
    for module, group in itertools.groupby(
        series_of(published), lambda s: s.benchmark.split(".")[0]
    ):
        rows = []
        for s in group:
            commit, value = s.points[-1]
            before = s.points[-2][1] if len(s.points) > 1 else 0.0
            ratio = f"{value / before:.2f}" if before else ""
            cells = s.benchmark.partition(".")[2], s.parameters, s.machine
            texts = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
            rows.append(
                f'<tr>{texts}<td class="number">{value:.4g} {html.escape(s.unit)}</td>'
                f'<td class="number">{ratio}</td><td>{commits[commit][:8]}</td>'
                f"<td>{curve(s.points)}</td></tr>"
            )
        table = "\n".join([HEAD, *rows])
        parts.append(f"<h2>{html.escape(module)}</h2>\n<table>\n{table}\n</table>")
    body = "\n".join(parts) or "<p>Nothing was measured yet: <code>make bench</code>.</p>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>{html.escape(index['project'])}: results of the benchmarks</title>"
        f"<style>{STYLE}</style></head>\n<body>\n<h1>Results of the benchmarks</h1>\n"
        '<p>To zoom into, with scripts from the web: <a href="index.html">asv</a>.</p>\n'
        f"{body}\n</body></html>\n"
    )


def main() -> None:
    """Write the page into the folder that is named."""
    published = Path(sys.argv[1])
    (published / "results.html").write_text(page(published), encoding="utf-8")


if __name__ == "__main__":
    main()
