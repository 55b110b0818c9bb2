"""What a function returned becomes one 1-d array of losses, on the host or where it is."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import errors
from ._arrays import (
    Array,
    detach,
    device,
    dtype_name,
    is_array,
    is_complex,
    namespace,
    widest_float,
)


def scalar_loss(value: Any) -> Any:
    """Return one loss as a Python float or as a 0-d array; raise if it is neither."""
    if isinstance(value, numbers.Real):  # float, int, bool, NumPy's real scalars, fractions
        try:
            return float(value)
        except OverflowError:
            raise errors.loss_not_real(value, "an integer too large for a float") from None
    if isinstance(value, np.bool_):
        return float(value)
    if not is_array(value):
        raise errors.loss_not_real(value, f"an object of type {type(value).__name__}")
    if value.shape != ():
        raise errors.loss_not_scalar(tuple(value.shape))
    if is_complex(value):
        raise errors.loss_not_real(value, f"the complex dtype {value.dtype}")
    if isinstance(value, np.ndarray):
        return float(value)
    return detach(value)


def stack_losses(values: Sequence[Any]) -> Array:
    """Join the losses of a step into one 1-d array, on the host only if all losses are there.

    Python floats become float64 on the host, whatever the parameters' precision: differences of
    losses are taken before anything is rounded to it.
    """
    return join_losses([scalar_loss(value) for value in values])


def join_losses(scalars: list[Any]) -> Array:
    """Do the work of `stack_losses` on what `scalar_loss` returned."""
    if set(map(type, scalars)) == {float}:
        return np.asarray(scalars, dtype=np.float64)
    arrays = [s for s in scalars if not isinstance(s, float)]
    xp = namespace(arrays[0])
    place, exact = device(arrays[0]), [_loss_dtype(a) for a in arrays]
    # Numbers of the host beside arrays are what stands for failures; they have no say in it.
    dtype = next((d for d in exact if d != xp.float32), xp.float32)
    return xp.stack([xp.asarray(s, dtype=dtype, device=place) for s in scalars])


def replace_losses(losses: Array, places: list[int], others: Array) -> Array:
    """Return 1-d `losses` with `others` at the given places."""
    xp = namespace(losses)
    if isinstance(others, np.ndarray) and xp is not np:  # failures alone are floats
        others = xp.asarray(others, dtype=losses.dtype, device=device(losses))
    elif xp is np and not isinstance(others, np.ndarray):
        return join_losses(
            [
                others[places.index(i)] if i in places else float(losses[i])
                for i in range(losses.shape[0])
            ]
        )
    parts = [others[places.index(i)] if i in places else losses[i] for i in range(losses.shape[0])]
    return xp.stack(parts)


def _loss_dtype(losses: Array) -> Any:
    """Return the dtype in which differences of losses are taken: none of their digits is lost."""
    xp = namespace(losses)
    if dtype_name(losses) in {"float16", "bfloat16", "float32"}:
        return xp.float32
    # Integers, too: a count of errors beyond 2**24 has no place in float32.
    return widest_float(losses)


def loss_vector(losses: Array) -> Array:
    """Return 1-d `losses` as float32 or float64, without their graph if they have one."""
    if isinstance(losses, np.ndarray) and losses.dtype.kind in "fiub":
        return losses.astype(np.float64, copy=False)
    if is_complex(losses) or isinstance(losses, np.ndarray):
        raise errors.loss_not_real(losses, f"an array of dtype {losses.dtype}")
    losses = detach(losses)
    dtype = _loss_dtype(losses)
    return losses if losses.dtype == dtype else namespace(losses).astype(losses, dtype)


def check_losses(losses: Any, expected: int, error: Callable[[Any, int], Exception]) -> Array:
    """Return `expected` losses as a 1-d array; raise what `error` makes of a wrong shape."""
    if is_array(losses):
        if tuple(losses.shape) != (expected,):
            raise error(tuple(losses.shape), expected)
        return loss_vector(losses)
    if not isinstance(losses, Sequence) or isinstance(losses, str):
        raise errors.losses_not_sequence(losses, expected)
    if len(losses) != expected:
        raise error((len(losses),), expected)
    return stack_losses(losses)
