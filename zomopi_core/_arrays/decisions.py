"""Small questions that a host answers by a look, where a device goes on with a mask."""

from __future__ import annotations

from typing import Any

import numpy as np

from .namespaces import Array, device, namespace


def select(condition: Array, value: Array, other: Any) -> Any:
    """Return `value` if a single condition holds, else `other`: ``where`` for a 0-d condition.

    NumPy, whose comparisons of numbers are known at once, returns one of the two as it is.
    """
    if isinstance(condition, np.generic):
        return value if condition else other
    return namespace(condition).where(condition, value, other)


def all_hold(conditions: Array) -> bool:
    """Tell whether all of a few conditions, 1-d, hold; False also where a look would wait."""
    # A list of a few is searched in half the time of a reduction.
    return isinstance(conditions, np.ndarray) and False not in conditions.tolist()


def largest(x: Array) -> Array:
    """Return the largest entry of `x` as a 0-d array."""
    return x.max() if isinstance(x, np.ndarray) else namespace(x).max(x)


def number(value: float, like: Array) -> Array:
    """Return a number as a 0-d array of the dtype and device of `like`."""
    if isinstance(like, np.ndarray):
        return like.dtype.type(value)
    xp = namespace(like)
    return xp.full((), value, dtype=like.dtype, device=device(like))
