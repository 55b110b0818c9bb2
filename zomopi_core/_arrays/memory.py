"""The memory of arrays: copies, places for results, what may be written, how it lies."""

from __future__ import annotations

from typing import Any

import array_api_compat as compat
import numpy as np

from .namespaces import Array, device, is_array, library, namespace

# libraries whose arrays are written to
WRITABLE = {"numpy", "torch", "cupy"}


def empty_like(x: Array, count: int | None = None) -> Array | None:
    """Return memory for an array like `x`, or for a stack of `count`; None if it cannot be used.

    Arrays of JAX and of the bare standard are not written to.
    """
    xp = namespace(x)
    if library(xp) not in WRITABLE:
        return None
    shape = tuple(x.shape) if count is None else (count, *x.shape)
    return xp.empty(shape, dtype=x.dtype, device=device(x))


def copy(x: Array, out: Array | None = None) -> Array:
    """Return a copy that shares no memory with `x`; of NumPy's subclasses a plain array.

    It is `out` where that is given, an array of the shape and dtype of `x`.
    """
    if out is not None and library(namespace(x)) in WRITABLE:
        out[...] = x
        return out
    if isinstance(x, np.ndarray):
        return np.array(x)
    return namespace(x).asarray(x, copy=True, device=device(x))


def joined(before: list[Array], stack: Array, behind: list[Array]) -> Array:
    """Return arrays, the entries of a stack (it may be an empty list) and arrays as one stack."""
    like = (before + behind)[0] if before or behind else stack
    xp = namespace(like)
    parts = [before and xp.stack(before), stack, behind and xp.stack(behind)]
    parts = [p for p in parts if is_array(p)]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)


def freeze(x: Array) -> Array:
    """Return `x`, guarded against changes in place where its library can do that."""
    if isinstance(x, np.ndarray):
        x.flags.writeable = False
    return x


def thaw(x: Array) -> bool:
    """Allow changes of `x` in place again; tell whether they are allowed now."""
    if isinstance(x, np.ndarray):
        try:
            x.flags.writeable = True
        except ValueError:  # what was unpickled lies in memory of its own kind
            return False
    return True


def read_only(x: Array) -> Array:
    """Return `x` for somebody who must not change it; a NumPy array says so if he tries."""
    return freeze(x.view()) if isinstance(x, np.ndarray) else x


def changes_in_place(x: Array) -> bool:
    """Tell whether the library of `x` writes into its arrays."""
    return isinstance(x, np.ndarray) or library(namespace(x)) in WRITABLE


def lies_in_rows(x: Array) -> bool:
    """Tell whether `x` lies in memory in C order without gaps, as results are written."""
    if isinstance(x, np.ndarray):
        return x.flags.c_contiguous
    kind = library(namespace(x))
    if kind == "torch":
        return bool(x.is_contiguous())
    return kind not in WRITABLE or bool(x.flags.c_contiguous)


def changes(x: Array) -> int:
    """Return how often `x` was changed in place, where its library counts that; else 0."""
    if compat.is_torch_array(x) and not x.is_inference():
        return int(x._version)
    return 0


def has_meaning_of_its_own(x: Array) -> bool:
    """Tell whether `x` is of a NumPy subclass whose entries or operators are not an array's."""
    return isinstance(x, np.ma.MaskedArray | np.matrix)


def axis_order(x: Array) -> tuple[int, ...]:
    """Return the axes of `x` from the slowest to the fastest in memory.

    Products take other paths, and round otherwise, for transposed arrays: what is stored and read
    again must lie as it lay.
    """
    strides = getattr(x, "strides", None)
    if strides is None and compat.is_torch_array(x):
        strides = x.stride()
    if strides is None:
        return tuple(range(x.ndim))
    return tuple(sorted(range(x.ndim), key=lambda axis: -abs(strides[axis])))


def identity(x: Array) -> Any:
    """Return a key that two arrays share only if they are the same numbers in memory."""
    if isinstance(x, np.ndarray):
        return x.__array_interface__["data"][0], x.shape, x.strides, x.dtype.str
    return id(x)
