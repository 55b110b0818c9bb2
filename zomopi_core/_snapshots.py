"""Snapshots beside a journal: the start, and the complete state of a run every so often.

They shorten a replay and decide nothing: without them the same bits come from the losses alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from . import _safetensors, _tree


class Found(NamedTuple):
    """A snapshot that was read.

    Attributes
    ----------
    row : int
        Number of the journal's rows that it holds.
    tree : object
    """

    row: int
    tree: Any


class SnapshotFiles:
    """The snapshots of one run.

    Parameters
    ----------
    journal : Path
    run : str
        Identity of the run, as in the journal's header; files of another run are not read.
    """

    def __init__(self, journal: Path, run: str) -> None:
        self._journal, self._run = journal, run

    def name(self, step: int | None) -> Path:
        """Return the file for a step, None for x0."""
        part = "x0" if step is None else f"{step:09d}"
        return self._journal.with_name(f"{self._journal.name}.{part}.safetensors")

    def save(self, step: int | None, row: int, tree: Any) -> None:
        """Write a snapshot of `tree`, the state after the first `row` rows."""
        structure, arrays = _tree.encode(tree)
        metadata = {"run": self._run, "row": str(row), "structure": json.dumps(structure)}
        _safetensors.write(self.name(step), arrays, metadata)

    def load(self, step: int | None, like: Any, random: Any) -> Found:
        """Read a snapshot.

        Raises
        ------
        ValueError, OSError
            If there is none that can be used.
        """
        arrays, metadata = _safetensors.read(self.name(step))
        if metadata.get("run") != self._run:
            raise ValueError("it belongs to another run")
        try:
            structure, row = json.loads(metadata["structure"]), int(metadata["row"])
        except (KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"its structure cannot be read: {error}") from None
        return Found(row, _tree.decode(structure, arrays, like, random))

    def steps(self) -> list[int]:
        """Return the steps of which there is a file, the latest first."""
        pattern = re.compile(re.escape(self._journal.name) + r"\.(\d{9,18})\.safetensors")
        found = (pattern.fullmatch(f.name) for f in self._journal.absolute().parent.iterdir())
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def keep(self, last: int) -> None:
        """Remove all but the last snapshots; that of x0 stays."""
        for step in self.steps()[last:]:
            self.name(step).unlink(missing_ok=True)

    def usable(self, rows: int, step: int | None, like: Any, random: Any) -> Iterator[Found]:
        """Yield the snapshots within the first `rows` rows and steps, the latest first.

        Those that are damaged are passed over.
        """
        for at in self.steps():
            if step is not None and at > step:
                continue
            try:
                found = self.load(at, like, random)
            except (ValueError, OSError):
                continue
            if found.row <= rows:
                yield found
