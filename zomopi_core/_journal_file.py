"""The file of a journal: an SQLite database with one checksummed row an evaluation of a step.

Each row's checksum goes on from that of the row before, and the first from the header's: a row
that was changed, moved, left out or taken from another run is found. What SQLite promises of
its write-ahead log is what the journal promises: after a crash of the process all rows are there,
after a loss of power those that had reached the disk, and no row is there in part.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import _journal_attachments, errors
from ._file_lock import FileLock
from ._journal_attachments import Attachment
from ._journal_rows import KINDS, Row, probe_checksum, row_checksum, text_checksum

FORMAT = 2  # with a table of attachments; 1 without it
_APPLICATION = 0x7A6F6D70  # "zomp"
_TABLES = {
    "header": "CREATE TABLE header (value TEXT NOT NULL, checksum INTEGER NOT NULL)",
    "evaluation": (
        "CREATE TABLE evaluation (id INTEGER PRIMARY KEY, step INTEGER NOT NULL, "
        "kind TEXT NOT NULL, queries INTEGER NOT NULL, loss REAL, learning_rate REAL, "
        "elapsed REAL NOT NULL, losses BLOB NOT NULL, note TEXT NOT NULL, "
        "checksum INTEGER NOT NULL)"
    ),
    "probe": (
        "CREATE TABLE probe (position INTEGER PRIMARY KEY, id INTEGER NOT NULL, "
        "loss BLOB NOT NULL, checksum INTEGER NOT NULL)"
    ),
}
_COLUMNS = "id, step, kind, queries, loss, learning_rate, elapsed, losses, note, checksum"
# The longest text or blob that is read: 65,536 losses take an eighth of it.
_LONGEST = 4 * 2**20
# Pages of the log (4 KiB each) after which it is taken into the file.
_PAGES = 1000
_WAIT_SECONDS = 10.0


class JournalFile:
    """A journal open for writing, by this process alone.

    Parameters
    ----------
    path : Path
        An existing journal.
    durable : bool
        Whether each row is forced to the disk before the next step.

    Raises
    ------
    JournalError
        If it is no journal, is damaged, of a newer format, or written by another process.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path, self.durable = path, durable
        self._owner = os.getpid()
        _check_exists(path)
        try:
            os.close(os.open(path, os.O_RDWR))
        except PermissionError as error:
            raise errors.journal_not_writable(path, error) from error
        except OSError:  # a folder, say: `_connect` tells what is wrong with it
            pass
        self._lock = _locked(path)
        try:
            self._connection = _connect(path, write=True)
            with _explained(path):
                _check_schema(self._connection, path)
                self.header, self._checksum = _read_header(self._connection, path)
        except BaseException:
            self._lock.release()
            raise
        self._id, self._last = 0, self._checksum
        self._writes = False
        self._stat = os.stat(path)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the rows and their numbers; writing goes on behind the last of them."""
        for number, row, checksum in _read_rows(self._connection, self.path, self._checksum):
            self._id, self._last = number, checksum
            yield number, row

    def probes(self) -> dict[int, bytes]:
        """Return the packed losses of single probes of the evaluation that was under way."""
        with _explained(self.path):
            return _read_probes(self._connection, self.path, self._id + 1, self._last)

    def begin(self) -> None:
        """Make ready to write behind the last row that `rows` gave; until then nothing changes."""
        execute = self._connection.execute
        with _explained(self.path):
            execute("PRAGMA journal_mode=WAL")
            execute(f"PRAGMA synchronous={'FULL' if self.durable else 'NORMAL'}")
            execute(f"PRAGMA wal_autocheckpoint={_PAGES}")
        self._writes = True

    def append(self, row: Row, attachments: Sequence[Attachment] = ()) -> None:
        """Write a row, which takes the place of the single probes that it holds.

        Its attachments, whose digests are in its note, are there if it is.
        """
        number, checksum = self._id + 1, row_checksum(self._last, self._id + 1, row)
        values = (
            number,
            row.step,
            row.kind,
            row.queries,
            _null(row.loss),
            _null(row.learning_rate),
            row.elapsed,
            row.losses,
            row.note,
            checksum,
        )
        if attachments:
            with _journal_attachments.transaction(self._connection):
                _journal_attachments.write(self._connection, number, attachments)
                self._connection.execute(_INSERT, values)
        else:
            self._connection.execute(_INSERT, values)  # a transaction of its own
        self._id, self._last = number, checksum

    def attachment(self, number: int, name: str, digest: str) -> bytes:
        """Return an attachment of a row whose note gives it this digest."""
        with _explained(self.path):
            try:
                return _journal_attachments.read(self._connection, number, name, digest)
            except ValueError as error:
                what = f"{name!r:.40}, attached to row {number}"
                raise errors.damaged_journal(self.path, what) from error

    def append_probe(self, position: int, loss: bytes) -> None:
        """Write the loss of one point of the evaluation that is under way.

        It takes the place of that of the same point in an earlier evaluation.
        """
        number = self._id + 1
        values = position, number, loss, probe_checksum(self._last, number, position, loss)
        self._connection.execute("INSERT OR REPLACE INTO probe VALUES (?, ?, ?, ?)", values)

    @property
    def is_there(self) -> bool:
        """Whether the file is still the one under its name; of no interest to a fork."""
        if self._owner != os.getpid():
            return True
        try:
            return os.path.samestat(os.stat(self.path), self._stat)
        except OSError:
            return False

    def close(self) -> None:
        """Bring all into the one file, which can then be copied or read from anywhere."""
        if self._owner != os.getpid():
            return
        if self._writes:
            with contextlib.suppress(sqlite3.Error):  # a reader that is there may forbid it
                self._connection.execute("PRAGMA busy_timeout=0")
                self._connection.execute("PRAGMA journal_mode=DELETE")
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        self._lock.release()


_INSERT = "INSERT INTO evaluation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


def create(path: Path, header: dict[str, Any], *, durable: bool = False) -> JournalFile:
    """Make a new journal and open it; nothing that exists is overwritten.

    It appears under its name with its header in it, or not at all.
    """
    lock = _locked(path)  # so that two that create the same one do not meet
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if path.exists() or path.is_symlink():
            raise errors.journal_exists(path)
        draft.unlink(missing_ok=True)
        text = json.dumps(header, sort_keys=True)
        connection = sqlite3.connect(draft, isolation_level=None)
        try:
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
            connection.execute("PRAGMA user_version=1")
            connection.execute("BEGIN")
            for statement in _TABLES.values():
                connection.execute(statement)
            connection.execute("INSERT INTO header VALUES (?, ?)", (text, text_checksum(text)))
            connection.execute("COMMIT")
        finally:
            connection.close()
        _publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)
        lock.release()
    return JournalFile(path, durable=durable)


def _publish(draft: Path, path: Path) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise errors.journal_exists(path) from None
    except OSError:  # a file system without hard links
        os.rename(draft, path)


class JournalReader:
    """A journal open for reading, also while another process writes it.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path, self._number = path, 0
        self._connection = _connect(path, write=False)
        with _explained(path):
            _check_schema(self._connection, path)
            self.header, self._checksum = _read_header(self._connection, path)

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Yield the rows that were written since the last call, and their numbers."""
        found = _read_rows(self._connection, self._path, self._checksum, self._number)
        for number, row, checksum in found:
            self._number, self._checksum = number, checksum
            yield number, row

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def read_journal(path: Path) -> tuple[dict[str, Any], list[tuple[int, Row]]]:
    """Return the header of a journal, and its rows with their numbers."""
    with contextlib.closing(JournalReader(path)) as reader:
        return reader.header, list(reader.rows())


def lock_name(path: Path) -> Path:
    """Return the file that stands for the lock of a journal."""
    return path.with_name(path.name + "-lock")


def _locked(path: Path) -> FileLock:
    try:
        return FileLock(lock_name(path))
    except BlockingIOError:
        raise errors.journal_locked(path) from None
    except OSError as error:
        raise errors.journal_not_locked(path, error) from error


def _check_exists(path: Path) -> None:
    # Unlike the method of a path, this raises for no name, however long.
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no journal {path}")


def _connect(path: Path, *, write: bool) -> sqlite3.Connection:
    _check_exists(path)
    if not path.is_file():
        raise errors.not_a_journal(path, "it is not a file")
    try:
        with open(path, "rb") as file:
            beginning = file.read(16)
    except OSError as error:
        raise errors.not_a_journal(path, str(error)) from error
    if beginning != b"SQLite format 3\0":
        raise errors.not_a_journal(path, "it is no SQLite database")
    with _explained(path):
        if write:
            connection = _opened(path, "rw")
        else:
            try:
                connection = _opened(path, "ro")
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            except sqlite3.OperationalError:
                # A folder that cannot be written to: without a log there is nobody to wait for.
                if path.with_name(path.name + "-wal").exists():
                    raise
                connection = _opened(path, "ro&immutable=1")
        return connection


def _opened(path: Path, mode: str) -> sqlite3.Connection:
    name = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(
        name, uri=True, isolation_level=None, timeout=_WAIT_SECONDS, check_same_thread=False
    )
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "mmap_size=0"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite says of a damaged file into an error that names the file."""
    try:
        yield
    except (sqlite3.Error, UnicodeError, OverflowError, MemoryError) as error:
        raise errors.not_a_journal(path, f"SQLite says: {error}") from error


def _check_schema(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION:
        raise errors.not_a_journal(path, "it is a database of another application")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > FORMAT:
        raise errors.newer_journal(path, version, FORMAT)
    found = dict(connection.execute("SELECT name, sql FROM sqlite_master LIMIT 20"))
    expected = _TABLES if version == 1 else {**_TABLES, **_journal_attachments.TABLES}
    if version < 1 or found != expected:
        raise errors.not_a_journal(path, "its tables are not those of a journal")


def _read_header(connection: sqlite3.Connection, path: Path) -> tuple[dict[str, Any], int]:
    rows = connection.execute("SELECT value, checksum FROM header LIMIT 2").fetchall()
    if len(rows) != 1 or not isinstance(rows[0][0], str):
        raise errors.not_a_journal(path, "its header is not one text")
    text, checksum = rows[0]
    if text_checksum(text) != checksum:
        raise errors.damaged_journal(path, "its header")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise errors.damaged_journal(path, "its header") from None
    if not isinstance(header, dict):
        raise errors.damaged_journal(path, "its header")
    return header, checksum


_TYPES = (int, int, str, int, float | None, float | None, float, bytes, str, int)


def _read_rows(
    connection: sqlite3.Connection, path: Path, checksum: int, after: int = 0
) -> Iterator[tuple[int, Row, int]]:
    with _explained(path):
        expected = after + 1
        query = f"SELECT {_COLUMNS} FROM evaluation WHERE id > ? ORDER BY id"
        for values in connection.execute(query, (after,)):
            if not all(map(isinstance, values, _TYPES)):
                raise errors.damaged_journal(path, f"row {expected}")
            number, step, kind, queries, loss, rate, *rest, found = values
            row = Row(step, kind, queries, _nan(loss), _nan(rate), *rest)
            checksum = row_checksum(checksum, number, row)
            if number != expected or checksum != found or kind not in KINDS:
                raise errors.damaged_journal(path, f"row {expected}")
            yield number, row, checksum
            expected += 1


def _read_probes(
    connection: sqlite3.Connection, path: Path, number: int, last: int
) -> dict[int, bytes]:
    """Return what is known of row `number`; what belongs to earlier rows is left over."""
    probes = {}
    query = "SELECT position, loss, checksum FROM probe WHERE id = ?"
    for position, loss, found in connection.execute(query, (number,)):
        fits = type(position) is int and type(loss) is bytes
        if not fits or probe_checksum(last, number, position, loss) != found:
            raise errors.damaged_journal(path, "the probes of its last step")
        probes[position] = loss
    return probes


def _null(value: float) -> float | None:
    return None if math.isnan(value) else value


def _nan(value: float | None) -> float:
    return math.nan if value is None else value
