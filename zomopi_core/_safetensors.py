"""The safetensors format: named arrays in bytes that can be read without trusting them.

Eight bytes with the length of a JSON header, the header (for each array its dtype, shape and
place; strings under ``__metadata__``), the arrays' bytes one behind the other. The package of
that name reads these files and writes such that are read here; the core does without it, so that
a journal needs nothing to be installed, and refuses what it did not write itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

#: dtype of an array -> name in the file
_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_NAMES |= {"int64": "I64", "int32": "I32", "uint8": "U8", "bool": "BOOL"}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
_MOST_HEADER = 16 * 2**20
_DIGEST = "digest"


class Stored(NamedTuple):
    """The bytes of an array, with what they mean; NumPy has no bfloat16.

    Attributes
    ----------
    dtype : str
        Such as ``"float32"`` or ``"bfloat16"``.
    shape : tuple of int
    data : numpy.ndarray
        Contiguous, one axis of bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray[Any, Any]


def parts(arrays: Mapping[str, Stored], metadata: Mapping[str, str]) -> list[Any]:
    """Return the bytes of a file in pieces; a digest of all of them is added to the metadata."""
    entries: dict[str, Any] = {}
    place = 0
    for name, (dtype, shape, data) in arrays.items():
        end = place + data.size
        entries[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [place, end],
        }
        place = end
    digest = _digest(entries, metadata, [a.data for a in arrays.values()])
    header = json.dumps({"__metadata__": {**metadata, _DIGEST: digest}, **entries}).encode()
    header += b" " * (-len(header) % 8)
    return [struct.pack("<Q", len(header)), header, *(a.data.data for a in arrays.values())]


def write(path: Path, arrays: Mapping[str, Stored], metadata: Mapping[str, str]) -> None:
    """Write a file at once: it appears under its name complete, or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(draft, "wb") as file:
            file.writelines(parts(arrays, metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def read(path: Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the arrays and the metadata of a file that `write` made.

    Raises
    ------
    ValueError
        If it is no such file, or was changed since. Nothing is allocated beyond its own size, and
        a symbolic link is not followed.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError("it is not a regular file")
        return parse(np.fromfile(file, dtype=np.uint8, count=about.st_size))


def parse(data: np.ndarray[Any, Any]) -> tuple[dict[str, Stored], dict[str, str]]:
    """Return the arrays and the metadata of the bytes of a file; raise ValueError as `read`."""
    entries, metadata, start = _header(data)
    body = data[start:]
    arrays, place = {}, 0
    for name, entry in entries.items():
        dtype, shape, length = _checked(entry, place, body.size - place)
        arrays[name] = Stored(dtype, shape, body[place : place + length])
        place += length
    if place != body.size:
        raise ValueError("its arrays are not as long as the file")
    digest = metadata.pop(_DIGEST, None)
    if digest != _digest(entries, metadata, [body]):
        raise ValueError("its contents do not have the digest that was stored with them")
    return arrays, metadata


def _header(data: np.ndarray[Any, Any]) -> tuple[dict[str, Any], dict[str, str], int]:
    if data.size < 8:
        raise ValueError("it is cut off")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    if length > min(data.size - 8, _MOST_HEADER):
        raise ValueError("its header is longer than the file")
    try:
        header = json.loads(data[8 : 8 + length].tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is no JSON: {error}") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no table")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata are no strings")
    return header, metadata, 8 + length


def _checked(entry: Any, place: int, left: int) -> tuple[str, tuple[int, ...], int]:
    """Return dtype, shape and length of an array that begins at `place`."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("an entry of its header is incomplete")
    name, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(name, str) or name not in _BYTES:
        raise ValueError(f"it holds the dtype {name!r:.20}")
    if not isinstance(shape, list) or len(shape) > 32:
        raise ValueError("a shape is none")
    if not all(type(n) is int and 0 <= n <= 2**62 for n in shape):
        raise ValueError("a shape is none")
    length = math.prod(shape) * _BYTES[name]
    if offsets != [place, place + length] or length > left:
        raise ValueError("its arrays do not lie one behind the other")
    return _DTYPES[name], tuple(shape), length


def _digest(entries: Any, metadata: Mapping[str, str], parts: list[Any]) -> str:
    # Python's own types, in their order: JSON gives the same text when they are read again.
    hashed = hashlib.blake2b(digest_size=16)
    hashed.update(json.dumps([entries, dict(metadata)]).encode())
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()
