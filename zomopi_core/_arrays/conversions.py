"""Arrays between libraries, devices, dtypes and bytes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import array_api_compat as compat
import numpy as np

from .namespaces import Array, device, dtype_name, epsilon, library, namespace, working_dtype

# NumPy has one object for each of these, so that a look at the identity tells them apart.
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


def detach(x: Array) -> Array:
    """Return `x` without the graph that an autograd library may have attached to it."""
    return x.detach() if compat.is_torch_array(x) else x


def quiet() -> Any:
    """Return a context in which NumPy does not warn of overflow: infinity is looked for after."""
    return np.errstate(over="ignore")


def to_host(x: Array) -> np.ndarray[Any, Any]:
    """Return `x` as a NumPy array, waiting for its device if it has one."""
    if isinstance(x, np.ndarray):
        return x
    if compat.is_cupy_array(x):
        return np.asarray(x.get())
    if compat.is_torch_array(x):
        x = x.detach()
        if dtype_name(x) == "bfloat16":  # NumPy has no such dtype
            x = x.float()
        return np.asarray(x.cpu().numpy())
    if compat.is_jax_array(x):
        return np.asarray(x)
    # The standard has no name for the host; a library's default device is the nearest to it.
    default = namespace(x).__array_namespace_info__().default_device()
    return np.asarray(x.to_device(default))


def read(values: Sequence[Any]) -> list[list[float]]:
    """Return the entries of numbers, scalars and 1-d arrays, in one transfer from each device."""
    result: list[list[float]] = [[] for _ in values]
    places: dict[Any, list[int]] = {}
    for i, x in enumerate(values):
        if isinstance(x, float | int | np.ndarray | np.generic):
            result[i] = np.ravel(x).tolist()
        else:
            places.setdefault((library(namespace(x)), str(device(x))), []).append(i)
    for place in places.values():
        arrays = [detach(values[i]) for i in place]
        xp, dtype = namespace(arrays[0]), min(arrays, key=epsilon).dtype
        flat = [xp.reshape(xp.astype(x, dtype, copy=False), (-1,)) for x in arrays]
        numbers = iter(to_host(xp.concat(flat)).tolist())
        for i, x in zip(place, flat, strict=True):
            result[i] = [next(numbers) for _ in range(x.shape[0])]
    return result


def from_host(values: Array, like: Array) -> Array:
    """Return NumPy `values` in the library and on the device of `like`, in its working dtype."""
    xp = namespace(like)
    dtype = working_dtype(like)
    narrow = np.float64 if "float64" in str(dtype) else np.float32
    if values.dtype != narrow:
        with np.errstate(over="ignore"):  # infinity is what the caller looks for
            values = values.astype(narrow)
    if xp is np:
        return values
    if compat.is_torch_array(like) and like.device.type == "cuda":
        # A copy from pageable memory would wait for the device, and with it the step.
        return xp.asarray(np.array(values)).pin_memory().to(like.device, non_blocking=True)
    if not values.flags.writeable and library(xp) == "torch":
        values = values.copy()  # torch warns of memory that it could write to
    return xp.asarray(values, dtype=dtype, device=device(like))


def to_like(values: Array, like: Array) -> Array:
    """Return `values` (NumPy, or of the library of `like`) in the working dtype of `like`."""
    if isinstance(like, np.ndarray):
        dtype = like.dtype
        if dtype is not _SINGLE and dtype is not _DOUBLE:
            dtype = np.dtype(working_dtype(like))
        if isinstance(values, np.ndarray | np.generic):
            if values.dtype is dtype:
                return values
            with np.errstate(over="ignore"):  # infinity is what the caller looks for
                return values.astype(dtype)
        return from_host(to_host(values), like)
    xp = namespace(like)
    if namespace(values) is not xp:
        return from_host(to_host(values), like)
    dtype = working_dtype(like)
    if values.dtype != dtype:
        values = xp.astype(values, dtype)
    place = device(like)
    if place is None or place == device(values):
        return values
    return compat.to_device(values, place)


def to_bytes(x: Array) -> np.ndarray[Any, Any]:
    """Return the bytes of `x` in the order of its axes, on the host."""
    if compat.is_torch_array(x):
        torch = sys.modules["torch"]
        flat = x.detach().contiguous().cpu().reshape(-1)
        return np.asarray(flat.view(torch.uint8).numpy())
    return np.ascontiguousarray(to_host(x)).reshape(-1).view(np.uint8)


def from_bytes(
    data: np.ndarray[Any, Any], name: str, shape: tuple[int, ...], like: Array
) -> Array:
    """Return an array of the dtype `name` from its bytes, in the library and place of `like`."""
    xp = namespace(like)
    if compat.is_torch_array(like):
        flat = sys.modules["torch"].from_numpy(data.copy()).view(getattr(xp, name))
        return flat.reshape(shape).to(like.device)
    dtype = np.dtype(getattr(xp, name)) if name == "bfloat16" else np.dtype(name)
    values = data.view(dtype).reshape(shape)
    if xp is np:
        return np.array(values)
    return xp.asarray(values, device=device(like))
