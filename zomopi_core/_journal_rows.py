"""What a row of a journal holds: counts, losses as bytes, a note; and its checksum."""

from __future__ import annotations

import json
import math
import struct
import zlib
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, errors
from ._arrays import Array

_MOST_LOSSES = 2**17
_MASK = 0xFFFFFFFF

#: what the losses of a row were evaluated for
KINDS = {
    "": "the points of a step",
    "start": "x0",
    "iterate": "the iterate of a step",
    "target": "the best point, to confirm it",
    "best": "the best point, at the end",
    "last": "the last iterate, at the end",
    "guard": "the best point, to go back to it",
    "stop": "nothing: the run ended",
    "merge": "nothing: what was learned beside the weights was brought into them",
}


class Row(NamedTuple):
    """One evaluation of points.

    Attributes
    ----------
    step : int
        Steps taken before it.
    kind : str
        One of `KINDS`.
    queries : int
        Evaluations of the function up to and with this one.
    loss : float
        Mean of the finite losses of the points that make the estimate, NaN where there is none.
    learning_rate : float
        Of the step; NaN beside the steps.
    elapsed : float
        Seconds since the run began.
    losses : bytes
        As `pack_losses` makes them.
    note : str
        JSON: what failed, or the status at the end; empty where there is nothing to say.
    """

    step: int
    kind: str
    queries: int
    loss: float
    learning_rate: float
    elapsed: float
    losses: bytes
    note: str = ""


# First byte of packed losses: of the host, or of the parameters' library and float32 or float64.
_HOST, _SINGLE, _DOUBLE = b"h", b"s", b"d"
_DTYPES: dict[bytes, Any] = {_HOST: np.float64, _SINGLE: np.float32, _DOUBLE: np.float64}


def pack_losses(losses: Array) -> bytes:
    """Return 1-d losses as bytes that say where they came from."""
    if isinstance(losses, np.ndarray):
        return _HOST + losses.astype(np.float64, copy=False).tobytes()
    host = _arrays.to_host(losses)
    return (_SINGLE if host.dtype == np.float32 else _DOUBLE) + host.tobytes()


def pack_loss(loss: float) -> bytes:
    """Return what `pack_losses` does for one loss of the host."""
    return _HOST + struct.pack("=d", loss)


def unpack_losses(packed: bytes, like: Array) -> Array:
    """Return what `pack_losses` packed; raise ValueError if it is nothing of the kind."""
    kind = packed[:1]
    if kind not in _DTYPES:
        raise errors.other_run("losses of an unknown kind are recorded")
    dtype = np.dtype(_DTYPES[kind])
    count, rest = divmod(len(packed) - 1, dtype.itemsize)
    if rest or count > _MOST_LOSSES:
        raise errors.other_run(f"{len(packed)} bytes of losses are recorded for one step")
    host = np.frombuffer(packed, dtype=dtype, offset=1)
    if kind == _HOST:
        return host
    xp = _arrays.namespace(like)
    wanted = xp.float32 if kind == _SINGLE else xp.float64
    return xp.asarray(host.copy(), dtype=wanted, device=_arrays.device(like))


def unpack_loss(packed: bytes, like: Array) -> Any:
    """Return one loss as the function returned it: a float, or a 0-d array."""
    losses = unpack_losses(packed, like)
    if losses.shape != (1,):
        raise errors.other_run("several losses are recorded for one point")
    return float(losses[0]) if isinstance(losses, np.ndarray) else losses[0]


def mean_of_finite(losses: list[float]) -> float:
    """Return the mean of those that are finite, NaN if none is."""
    mean = sum(losses) / len(losses) if losses else math.nan
    if math.isfinite(mean):
        return mean
    finite = [x for x in losses if math.isfinite(x)]
    return sum(finite) / len(finite) if finite else math.nan


def note_of(**contents: Any) -> str:
    """Return the note of a row, empty where there is nothing to say."""
    contents = {name: value for name, value in contents.items() if value}
    return json.dumps(contents, sort_keys=True) if contents else ""


def read_note(row: Row) -> dict[str, Any]:
    """Return the contents of a row's note."""
    if not row.note:
        return {}
    try:
        note = json.loads(row.note)
    except (ValueError, RecursionError):
        note = None
    if not isinstance(note, dict):
        raise errors.other_run(f"the note of step {row.step} cannot be read")
    return note


def failures_of(row: Row) -> int:
    """Return the number of evaluations that failed, those that were repeated among them."""
    failed = read_note(row).get("failed", 0)
    if type(failed) is not int or not 0 <= failed < 2**53:
        raise errors.other_run(f"the note of step {row.step} counts no failures")
    return failed


def row_checksum(before: int, number: int, row: Row) -> int:
    """Return the checksum of a row, which goes on from that of the row before."""
    numbers = struct.pack("<qqq", number, row.step, row.queries)
    reals = struct.pack("<3d", _one_nan(row.loss), _one_nan(row.learning_rate), row.elapsed)
    parts = (numbers, reals, row.losses, f"{row.kind}\0{row.note}".encode())
    return _signed(zlib.crc32(b"".join(parts), before & _MASK))


def probe_checksum(last: int, number: int, position: int, loss: bytes) -> int:
    """Return the checksum of the loss of one point of a row that is under way."""
    return _signed(zlib.crc32(struct.pack("<qq", number, position) + loss, last & _MASK))


def text_checksum(text: str) -> int:
    """Return the checksum of a text, with which the chain of the rows begins."""
    return _signed(zlib.crc32(text.encode()))


def _signed(checksum: int) -> int:
    """Return 32 bits as SQLite stores them in four bytes."""
    return checksum - 2**32 if checksum >= 2**31 else checksum


def _one_nan(value: float) -> float:
    return math.nan if math.isnan(value) else value
