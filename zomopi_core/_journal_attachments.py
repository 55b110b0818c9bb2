"""Arrays beside the rows of a journal: what of a run does not follow from its losses.

They lie in a table of their own, in pieces, and come into it in the transaction of their row. The
row's note holds their digest, so that its checksum covers them. A journal without attachments has
no such table; the first one makes it, and with it format 2 of format 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _safetensors, _tree

_TABLE = (
    "CREATE TABLE attachment (name TEXT NOT NULL, id INTEGER NOT NULL, part INTEGER NOT NULL, "
    "data BLOB NOT NULL, PRIMARY KEY (name, id, part))"
)
#: the table and its index, as SQLite lists them
TABLES = {"attachment": _TABLE, "sqlite_autoindex_attachment_1": None}
# Bytes of a piece: a row of SQLite's has a limit.
_PIECE = 2**20
_NOTE = "attached"


class Attachment(NamedTuple):
    """Arrays of one row.

    Attributes
    ----------
    name : str
        What they are.
    data : bytes
        In the safetensors format.
    replaces : bool
        Whether those of earlier rows are of no use any more, and are removed.
    """

    name: str
    data: bytes
    replaces: bool


def attachment(name: str, tree: Any, *, replaces: bool = False) -> Attachment:
    """Return arrays in tuples and dicts, as they are attached to a row."""
    structure, arrays = _tree.encode(tree)
    pieces = _safetensors.parts(arrays, {"structure": json.dumps(structure)})
    return Attachment(name, b"".join(pieces), replaces)


def unpacked(data: bytes, like: Any) -> Any:
    """Return what was attached, in the library and place of `like`.

    Raises
    ------
    ValueError
        If it is nothing of the kind.
    """
    arrays, metadata = _safetensors.parse(np.frombuffer(data, dtype=np.uint8))
    try:
        structure = json.loads(metadata["structure"])
    except (KeyError, RecursionError) as error:
        raise ValueError(f"its structure cannot be read: {error}") from None
    return _tree.decode(structure, arrays, like, None)


def noted(attachments: Sequence[Attachment]) -> dict[str, Any]:
    """Return what the note of a row says of its attachments."""
    return {_NOTE: {a.name: _digest(a.data) for a in attachments}} if attachments else {}


def digests_in(note: dict[str, Any]) -> dict[str, str]:
    """Return the digests of the attachments of a row by name.

    Parameters
    ----------
    note : dict
        The contents of the row's note.

    Raises
    ------
    ValueError
        If what stands there is nothing of the kind.
    """
    found = note.get(_NOTE, {})
    if not isinstance(found, dict) or not all(isinstance(d, str) for d in found.values()):
        raise ValueError("it names no attachments")
    return found


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Surround what is written together or not at all."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it
            connection.execute("ROLLBACK")
        raise


def write(connection: sqlite3.Connection, number: int, attachments: Sequence[Attachment]) -> None:
    """Write the attachments of a row, within its transaction."""
    if connection.execute("PRAGMA user_version").fetchone() == (1,):
        connection.execute(_TABLE)
        connection.execute("PRAGMA user_version=2")
    for name, data, replaces in attachments:
        if replaces:
            connection.execute("DELETE FROM attachment WHERE name = ?", (name,))
        view = memoryview(data)
        for part, start in enumerate(range(0, len(data), _PIECE)):
            values = name, number, part, view[start : start + _PIECE]
            connection.execute("INSERT INTO attachment VALUES (?, ?, ?, ?)", values)


def read(connection: sqlite3.Connection, number: int, name: str, digest: str) -> bytes:
    """Return an attachment; raise ValueError if it is not there as it was written."""
    query = "SELECT data FROM attachment WHERE name = ? AND id = ? ORDER BY part"
    pieces = [data for (data,) in connection.execute(query, (name, number))]
    if not all(isinstance(piece, bytes) for piece in pieces):
        raise ValueError("a piece is no bytes")
    data = b"".join(pieces)
    if _digest(data) != digest:
        raise ValueError("it does not have its digest")
    return data


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
