"""Bounds and projections: where the iterate must stay after each step."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

from . import _arrays, errors
from ._arrays import Array
from .method import leaves_of, like_params

Projection = Callable[[Any], Any]


def projection(bounds: Any, project: Projection | None, params: Any) -> Projection | None:
    """Return what is applied to the parameters after each step, or None.

    Parameters
    ----------
    bounds : (low, high) or None
        Numbers, None for no bound on that side, arrays that broadcast to the parameters, or, for
        parameters in a dict, dicts of them (a name left out is not bounded).
    project : callable or None
        Takes the parameters and returns the nearest feasible ones; applied after the bounds.
    params : array or dict of arrays

    Raises
    ------
    ValueError
        If the bounds are not a pair, do not broadcast, or a lower bound exceeds an upper one.
    """
    if project is not None and not callable(project):
        raise TypeError(f"project must be callable, got {type(project).__name__}")
    box = None if bounds is None else _box(bounds, params)
    if box is None and project is None:
        return None

    def apply(point: Any) -> Any:
        if box is not None:
            arrays = [_clip(x, *pair) for x, pair in zip(leaves_of(point), box, strict=True)]
            point = like_params(params, arrays)
        return point if project is None else _check_projected(project(point), params)

    return apply


def _box(bounds: Any, params: Any) -> list[tuple[Any, Any]]:
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise errors.wrong_bounds(f"got {type(bounds).__name__} {bounds!r:.80}")
    arrays = leaves_of(params)
    names = sorted(params) if isinstance(params, Mapping) else [None]
    columns = []
    for bound in bounds:
        if isinstance(bound, Mapping):
            unknown = set(bound) - set(names)
            if not isinstance(params, Mapping) or unknown:
                raise errors.wrong_bounds(f"unknown names {sorted(map(str, unknown)) or bound!r}")
            columns.append([bound.get(name) for name in names])
        else:
            columns.append([bound] * len(arrays))
    box = []
    for low, high, x in zip(*columns, arrays, strict=True):
        pair = _bound(low, x, -1), _bound(high, x, 1)
        if low is not None and high is not None and not _ordered(*pair):
            raise errors.wrong_bounds("a lower bound is above its upper bound")
        box.append(pair)
    return box


def _ordered(low: Array, high: Array) -> bool:
    return bool(_arrays.namespace(low).all(low <= high))


def _bound(bound: Any, x: Array, side: int) -> Array | None:
    """Return a lower (side -1) or upper bound as an array of the shape of `x`, or None."""
    if bound is None:
        return None
    xp = _arrays.namespace(x)
    try:
        if not isinstance(bound, numbers.Real) and not _arrays.is_array(bound):
            raise TypeError
        array = xp.asarray(bound, dtype=x.dtype, device=_arrays.device(x))
        array = xp.broadcast_to(array, x.shape)
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"shape {tuple(bound.shape)}" if _arrays.is_array(bound) else repr(bound)
        raise errors.wrong_bounds(
            f"{what:.60} does not fit an array of shape {tuple(x.shape)}"
        ) from error
    if bool(xp.any(xp.isnan(array))):
        raise errors.wrong_bounds("a bound is NaN")
    if bool(xp.any(array == -side * math.inf)):
        raise errors.wrong_bounds(f"a bound of {-side * math.inf} leaves nothing")
    return array


def _clip(x: Array, low: Array | None, high: Array | None) -> Array:
    xp = _arrays.namespace(x)
    if low is not None:
        x = xp.where(x < low, low, x)
    return x if high is None else xp.where(x > high, high, x)


def _check_projected(point: Any, params: Any) -> Any:
    if isinstance(params, Mapping):
        if not isinstance(point, Mapping) or set(point) != set(params):
            raise errors.wrong_projection("x", f"came back as {type(point).__name__}")
        point = {name: point[name] for name in params}
        names = [f"x[{name!r}]" for name in sorted(params)]
    else:
        names = ["x"]
    for name, new, old in zip(names, leaves_of(point), leaves_of(params), strict=True):
        if not _arrays.is_array(new) or _arrays.namespace(new) is not _arrays.namespace(old):
            raise errors.wrong_projection(name, f"came back as {type(new).__name__}")
        if tuple(new.shape) != tuple(old.shape) or new.dtype != old.dtype:
            raise errors.wrong_projection(
                name,
                f"came back with shape {tuple(new.shape)} and dtype {new.dtype}, "
                f"not {tuple(old.shape)} and {old.dtype}",
            )
    return point
