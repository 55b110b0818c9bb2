"""The journal of a run: what must be written so that everything else can be computed again.

All draws are functions of the seed's key, so that a run follows from its header (library, method,
seed, start) and the losses of its points. `Recorder` stands between a driver and the file: it
hands out the losses that were recorded, and from there on writes those that are new.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import _arrays, errors
from ._arrays import Array
from ._checks import as_python, check_count, check_name, positive
from ._header import describe
from ._journal_attachments import Attachment, unpacked
from ._journal_file import JournalFile, create
from ._journal_rows import (
    Row,
    mean_of_finite,
    pack_loss,
    pack_losses,
    unpack_loss,
    unpack_losses,
)
from ._snapshots import SnapshotFiles
from ._tree import CannotStoreError
from .method import Method, leaves_of
from .sampling import Sampler

# Evaluations that take longer are written one by one, shorter ones with their step. What a write
# takes: docs/reliability.md.
SLOW_SECONDS = 0.010


@dataclass(frozen=True)
class Journal:
    """Where and how a run is recorded; ``journal="run.zomopi"`` stands for its defaults.

    Parameters
    ----------
    path : str or path
        The file, which must not exist. Beside it lie ``path.x0.safetensors`` and the snapshots,
        ``path.000001200.safetensors``, and while the run lives SQLite's ``path-wal`` and
        ``path-shm`` and the lock ``path-lock``.
    durable : bool
        Whether to wait at each step until it is on the disk, so that a loss of power loses
        nothing. Without it a crash of the process loses nothing.
    snapshots : bool
        Whether x0 and complete states are stored. Without them, `resume` and `replay` need x0.
    snapshot_steps : int, optional
        Steps from one snapshot to the next; by default only time counts.
    snapshot_seconds : float
        Seconds after which the next step is followed by a snapshot.
    keep : int
        Number of snapshots that are kept beside that of x0.
    on_error : {"warn", "raise"}
        What happens when the journal cannot be written, as on a full disk: the run goes on
        without it after a `JournalWarning`, or ends with a `JournalError`, which like every
        exception of `minimize` carries the result.

    Examples
    --------
    >>> import zomopi_core as zo
    >>> zo.Journal("run.zomopi", snapshot_steps=1000).keep
    2
    """

    path: str | os.PathLike[str]
    durable: bool = False
    snapshots: bool = True
    snapshot_steps: int | None = None
    snapshot_seconds: float = 300.0
    keep: int = 2
    on_error: str = "warn"

    def __post_init__(self) -> None:
        if not isinstance(self.path, str | os.PathLike) or isinstance(self.path, bytes):
            raise errors.wrong_journal(self.path)
        for name in ("durable", "snapshots"):
            if not isinstance(getattr(self, name), bool):
                raise errors.not_a_number(name, getattr(self, name), "True or False")
        if self.snapshot_steps is not None:
            check_count("snapshot_steps", self.snapshot_steps)
        check_count("keep", self.keep)
        check_name("on_error", self.on_error, ("warn", "raise"))
        as_python(
            self,
            path=_file_name,
            snapshot_seconds=lambda value: positive("snapshot_seconds", value),
        )

    @property
    def _file(self) -> Path:
        # Whoever changes the folder during a run changes nothing of it.
        return Path(self.path).absolute()


def _file_name(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not file.name or "\0" in str(file):
        raise errors.no_file_name(path)
    return file


def as_journal(journal: Any) -> Journal | None:
    """Return what `journal=` was given as a `Journal`, None if there is none."""
    return None if journal is None else needed_journal(journal)


def needed_journal(journal: Any) -> Journal:
    """Return what was given as a `Journal`, where one is needed."""
    return journal if isinstance(journal, Journal) else Journal(journal)


class Recorder:
    """What a driver asks for recorded losses and hands new ones to.

    Parameters
    ----------
    journal : Journal
    file : JournalFile or None
        None writes nothing.
    run : str
        Identity of the run.
    like : array
        One of the parameters: recorded losses come back in its library, where they came from it.
    rows : iterator of (number, Row), optional
        What is recorded; by default nothing is.
    row : int
        Number of rows that are used up.
    """

    def __init__(
        self,
        journal: Journal,
        file: JournalFile | None,
        run: str,
        like: Array,
        rows: Iterator[tuple[int, Row]] | None = None,
        row: int = 0,
    ) -> None:
        self._journal, self._like = journal, like
        self._file = file
        self._rows = iter(()) if rows is None else rows
        self.row = row  # rows that are used up or written
        self._known: dict[int, bytes] = {}
        self.snapshots = SnapshotFiles(journal._file, run)
        self._saves = journal.snapshots
        self.began = self._saved_at = time.perf_counter()
        self.queries = 0  # of an optimizer; `minimize` counts its own
        self._next: tuple[int, Row] | None = None
        if rows is None:
            assert file is not None
            file.begin()
        else:
            for number, used in itertools.islice(self._rows, row):
                self.row, self.queries = number, used.queries
                self.began = time.perf_counter() - used.elapsed
            self._advance()

    @classmethod
    def start(
        cls,
        journal: Journal,
        driver: str,
        x0: Any,
        method: Method,
        sampler: Sampler,
        bounds: Any,
        project: Any,
        rules: dict[str, Any],
    ) -> Recorder:
        """Create the journal of a run that begins at `x0`."""
        header = describe(driver, x0, method, sampler, bounds, project, rules)
        path = journal._file
        snapshots = SnapshotFiles(path, header["run"])
        if os.path.lexists(path):
            raise errors.journal_exists(path)
        if not os.path.isdir(path.parent):
            raise errors.no_folder(path)
        try:
            # The start comes first: where there is a journal there is what it began with.
            if journal.snapshots:
                snapshots.save(None, 0, {"x0": x0, "bounds": _storable(bounds)})
            file = create(path, header, durable=journal.durable)
        except (sqlite3.Error, OSError) as error:
            if not os.path.lexists(path):
                with contextlib.suppress(OSError):
                    snapshots.name(None).unlink()
            raise errors.journal_not_made(path, error) from error
        return cls(journal, file, header["run"], leaves_of(x0)[0])

    def _advance(self) -> None:
        self._next = next(self._rows, None)
        if self._next is None and self._file is not None:
            self._known = self._file.probes()
            self._file.begin()

    @property
    def replays(self) -> bool:
        """Whether recorded rows are left."""
        return self._next is not None

    def peek(self) -> Row | None:
        """Return the next recorded row, None if there is none."""
        return None if self._next is None else self._next[1]

    def take(self, kind: str, step: int) -> Row | None:
        """Return the recorded row of the evaluation that is due; None if it is to be made."""
        if self._next is None:
            return None
        number, row = self._next
        if (row.kind, row.step) != (kind, step):
            raise errors.other_run(
                f"row {number} records {row.kind or 'the points'!r} of step {row.step} where this "
                f"run evaluates {kind or 'the points'!r} of step {step}"
            )
        self.row = number
        self._advance()
        return row

    def losses(self, row: Row, count: int) -> Array:
        """Return the recorded losses of `count` points."""
        losses = unpack_losses(row.losses, self._like)
        if losses.shape != (count,):
            raise errors.other_run(
                f"step {row.step} records {losses.shape[0]} losses, and {count} are needed"
            )
        return losses

    def known(self) -> dict[int, Any]:
        """Return the losses of single points of the evaluation that was under way, by index."""
        if not self._known:
            return {}
        known, self._known = self._known, {}
        return {i: unpack_loss(loss, self._like) for i, loss in known.items()}

    def native(self, losses: Array) -> Array:
        """Return losses as they can be recorded: on the host, or of the parameters' library."""
        if isinstance(losses, np.ndarray):
            return losses
        if _arrays.namespace(losses) is _arrays.namespace(self._like):
            return losses
        return _arrays.to_host(losses).astype(np.float64)

    def write_probe(self, index: int, loss: Any) -> None:
        """Record the loss of one point of the evaluation that is under way."""
        file = self._file
        if file is not None:
            if isinstance(loss, float):
                packed = pack_loss(loss)
            else:
                packed = pack_losses(self.native(loss[..., None]))
            self._write(lambda: file.append_probe(index, packed))

    def write(self, row: Row, attachments: Sequence[Attachment] = ()) -> None:
        """Record an evaluation, with what its note says is attached to it."""
        file = self._file
        if file is not None:
            self._write(lambda: file.append(row, attachments))
        self.row += 1

    def attached(self, number: int, name: str, digest: str) -> Any:
        """Return what was attached to a row, in the place of the parameters."""
        assert self._file is not None
        data = self._file.attachment(number, name, digest)
        try:
            return unpacked(data, self._like)
        except ValueError as error:
            raise errors.other_run(f"{name} of row {number}: {error}") from error

    def _write(self, write: Callable[[], Any]) -> None:
        try:
            write()
        except (sqlite3.Error, OSError) as error:
            assert self._file is not None
            path = self._file.path
            self.close()
            if self._journal.on_error == "raise":
                raise errors.journal_failed(path, error) from error
            warnings.warn(errors.journal_lost(path, error), errors.JournalWarning, stacklevel=4)

    def tell(self, optimizer: Any, losses: Array) -> Array:
        """Record what an optimizer is told, and return it as it is to be used."""
        losses = self.native(losses)
        host = _arrays.to_host(losses).tolist()
        self.queries += len(host)
        loss = mean_of_finite(host[: optimizer.probe_queries])
        elapsed = time.perf_counter() - self.began
        rate, packed = optimizer.learning_rate, pack_losses(losses)
        self.write(Row(optimizer.nit, "", self.queries, loss, rate, elapsed, packed))
        return losses

    def catch_up(self, optimizer: Any, step: int | None = None) -> None:
        """Take the recorded steps of an optimizer, up to a step, and tell it single losses."""
        while optimizer.nit != step and (row := self.take("", optimizer.nit)) is not None:
            self.queries, self.began = row.queries, time.perf_counter() - row.elapsed
            try:
                optimizer.follow(unpack_losses(row.losses, self._like))
            except ValueError as error:
                raise errors.other_run(f"step {row.step}: {error}") from error
        if known := self.known():
            optimizer.ask()
            optimizer._told = known

    def after_step(self, step: int, state: Callable[[], Any]) -> None:
        """Save a snapshot of `state()` if one is due."""
        if not self._saves or self._next is not None:
            return
        every = self._journal.snapshot_steps
        if (
            every is not None and step % every == 0
        ) or time.perf_counter() - self._saved_at >= self._journal.snapshot_seconds:
            self.save(step, state)

    def save(self, step: int | None, state: Callable[[], Any]) -> None:
        """Save a snapshot; None stands for x0."""
        if not self._saves or self._file is None:
            return
        self._saved_at = time.perf_counter()
        try:
            self.snapshots.save(step, self.row, state())
            self.snapshots.keep(self._journal.keep)
        except CannotStoreError as error:
            self._saves = False
            warnings.warn(errors.no_snapshots(error), errors.JournalWarning, stacklevel=3)
        except OSError as error:
            self._saves = False
            if self._journal.on_error == "raise":
                raise errors.journal_failed(self.snapshots.name(step), error) from error
            path = self.snapshots.name(step)
            warnings.warn(errors.journal_lost(path, error), errors.JournalWarning, stacklevel=3)

    def close(self) -> None:
        """Close the file and release its lock."""
        file, self._file = self._file, None
        if file is not None:
            if not file.is_there:
                warnings.warn(errors.journal_gone(file.path), errors.JournalWarning, stacklevel=4)
            file.close()


def _storable(bounds: Any) -> Any:
    """Return bounds as a tree: numbers, arrays, dicts of them."""
    if bounds is None:
        return None

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(v) for name, v in value.items()}
        return value if value is None or _arrays.is_array(value) else float(value)

    return tuple(plain(bound) for bound in bounds)
