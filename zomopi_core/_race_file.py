"""Results of a race in a file of JSON lines: a header, then one line for each finished run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from . import errors

FORMAT = "zomopi race 1"


@dataclass(frozen=True)
class RaceRun:
    """One solver on one problem with one seed.

    Attributes
    ----------
    problem, method : str
        Their names.
    group : str or None
        Name of the grid that the method is a member of.
    seed : int
        Of the problem and of the solver.
    settings : str
        What the method is made of, or the version of its package.
    definition : str
        A digest of the problem: name, shapes, dtypes, target and first loss.
    unknowns : int
        Number of entries of `x0`.
    target : float
        Loss that counts as solved; minus infinity where there is none.
    start : float
        Loss of `x0`.
    final : float
        Loss of the point that the solver returned.
    queries : int
        Evaluations it made.
    queries_to_target : float
        Evaluations after which the target was reached, infinity where it was not.
    seconds : float
        Time it took, without scoring.
    error : str or None
        What ended the run, where an exception did.
    curve : list of (int, float)
        Queries and the loss of the point that would have been returned after them; a loss holds
        until the next entry.
    """

    problem: str
    method: str
    group: str | None
    seed: int
    settings: str
    definition: str
    unknowns: int
    target: float
    start: float
    final: float
    queries: int
    queries_to_target: float
    seconds: float
    error: str | None
    curve: list[tuple[int, float]]

    def to_json(self) -> str:
        """Return the run as one line."""
        values = asdict(self) | {
            # six digits tell apart what can be told apart, and keep the lines short
            "curve": [(q, _finite(float(f"{loss:.6g}"))) for q, loss in self.curve],
        }
        for name in ("target", "start", "final", "queries_to_target"):
            values[name] = _finite(values[name])
        values["seconds"] = round(self.seconds, 4)
        return json.dumps(values, allow_nan=False)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RaceRun:
        """Return the run of a line; keys that this release does not know are left out."""
        known = {f.name: values[f.name] for f in fields(cls)}
        known["target"] = -math.inf if known["target"] is None else known["target"]
        for name in ("start", "final", "queries_to_target"):
            known[name] = math.inf if known[name] is None else known[name]
        known["curve"] = [(q, math.inf if x is None else x) for q, x in known["curve"]]
        return cls(**known)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read(file: Path) -> tuple[dict[str, Any], list[RaceRun], int]:
    """Return the header, the runs, and the bytes that hold them.

    What follows the last line break is what an interruption cut off, and is left out.
    """
    data = file.read_bytes()
    size = data.rfind(b"\n") + 1
    lines = data[:size].decode("utf-8", errors="replace").splitlines()
    parsed = []
    for number, line in enumerate(lines, 1):
        try:
            parsed.append(json.loads(line))
            if not isinstance(parsed[-1], dict):
                raise ValueError("no object")
        except ValueError:
            raise errors.not_a_race(file, f"line {number} is not a JSON object") from None
    if not parsed:
        if data:
            raise errors.not_a_race(file, "it has no header")
        return {}, [], 0
    if parsed[0].get("format") != FORMAT:
        raise errors.not_a_race(file, f"its header does not name the format {FORMAT!r}")
    try:
        return parsed[0], [RaceRun.from_json(values) for values in parsed[1:]], size
    except (KeyError, TypeError) as error:
        raise errors.not_a_race(file, f"a run lacks {error}") from None


class Journal:
    """The file of a running race, or nothing; each run is on the disk before the next begins."""

    def __init__(self, file: Path | None, header: dict[str, Any]) -> None:
        self.runs: list[RaceRun] = []
        self._file = None
        if file is None:
            return
        size = 0
        if file.exists():
            stored, self.runs, size = read(file)
            if size:
                check_same(file, stored, header)
        self._path, self._size, self._header = file, size, header
        self._file = file

    def begin(self) -> None:
        """Write the header, or cut off what an interruption left of a line."""
        if self._file is None:
            return
        if not self._size:
            self._file.write_text(json.dumps(self._header) + "\n", encoding="utf-8")
        elif self._size < self._file.stat().st_size:
            with self._file.open("r+b") as stream:
                stream.truncate(self._size)

    def add(self, run: RaceRun) -> None:
        """Keep a finished run."""
        line = run.to_json()
        # as a reader of the file would see it, so that both results are the same
        self.runs.append(RaceRun.from_json(json.loads(line)))
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")


def check_same(file: object, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise unless two headers describe one kind of race; versions may differ but zomopi's."""
    for what in ("budget", "backend", "device", "zomopi"):
        if stored.get(what) != wanted.get(what):
            raise errors.other_race(file, what, stored.get(what), wanted.get(what))
