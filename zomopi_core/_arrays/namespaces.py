"""What an array is, and what its library, its device and its dtype are."""

from __future__ import annotations

import functools
import math
import sys
from typing import Any

import array_api_compat as compat
import numpy as np

Array = Any

Namespace = Any

# The look-up walks over the libraries and costs microseconds, a type's answer never changes.
# NumPy follows the standard by itself from 2.1 on; the adapted namespace costs a call more.
_NAMESPACES: dict[type, Namespace] = {np.ndarray: np}


def is_array(x: object) -> bool:
    """Tell whether `x` is an array of a library that follows, or is adapted to, the standard."""
    # A NumPy scalar (np.float64) passes for an array in the compatibility layer; here it is not.
    if isinstance(x, np.ndarray | np.generic):
        return isinstance(x, np.ndarray)
    return bool(compat.is_array_api_obj(x))


def namespace(x: Array) -> Namespace:
    """Return the array-API namespace of `x`."""
    try:
        return _NAMESPACES[type(x)]
    except KeyError:
        xp = compat.array_namespace(x)
        return _NAMESPACES.setdefault(type(x), xp)


@functools.cache
def library(xp: Namespace) -> str:
    """Name the library behind a namespace: numpy, torch, cupy, jax, or its module's name."""
    name = str(xp.__name__).removeprefix("array_api_compat.")
    return name.split(".")[0]


def device(x: Array) -> Any:
    """Return the device of `x`; None where it is unknown, as under tracing."""
    if isinstance(x, np.ndarray):
        return "cpu"
    # What the compatibility layer returns, without its walk over the libraries.
    return x.device if compat.is_torch_array(x) else compat.device(x)


def current_device(x: Array) -> Any:
    """Return the device on which the library of `x` computes now.

    CuPy computes on its current device, wherever the arguments live; for the other libraries it
    is the device of `x`.
    """
    return sys.modules["cupy"].cuda.Device() if compat.is_cupy_array(x) else device(x)


def on_gpu(x: Array) -> bool:
    """Tell whether `x` lives on a GPU."""
    if isinstance(x, np.ndarray):
        return False
    if compat.is_torch_array(x):
        return bool(x.device.type == "cuda")
    if compat.is_jax_array(x):
        jax = sys.modules["jax"]
        if isinstance(x, jax.core.Tracer):  # which knows of no device: the default one
            return bool(jax.default_backend() == "gpu")
        return any(d.platform == "gpu" for d in x.devices())
    return bool(compat.is_cupy_array(x))


def can_branch(x: Array) -> bool:
    """Tell whether a value of `x` may be looked at without waiting: on a host, not traced."""
    return isinstance(x, np.ndarray) or (compat.is_torch_array(x) and x.device.type == "cpu")


def synchronize(x: Array) -> None:
    """Wait until the device of `x` has computed it; for clocks, never for a step."""
    if compat.is_torch_array(x):
        if x.device.type == "cuda":
            sys.modules["torch"].cuda.synchronize(x.device)
    elif compat.is_cupy_array(x):
        x.device.synchronize()  # all its streams: which one computes `x` is not known
    elif compat.is_jax_array(x):
        x.block_until_ready()


def size(x: Array) -> int:
    """Return the number of entries of `x`."""
    count: int = math.prod(x.shape)
    return count


def reshaped(x: Array, shape: tuple[int, ...]) -> Array:
    """Return the entries of `x` in another shape, in its memory where that can be."""
    return x.reshape(shape) if isinstance(x, np.ndarray) else namespace(x).reshape(x, shape)


def transposed(x: Array) -> Array:
    """Return `x` with its last two axes exchanged."""
    return x.T if x.ndim == 2 else namespace(x).matrix_transpose(x)


def is_real_floating(x: Array) -> bool:
    """Tell whether `x` has a real floating-point dtype, 16-bit formats included."""
    name = dtype_name(x)
    return name.startswith(("float", "bfloat"))


def is_complex(x: Array) -> bool:
    """Tell whether `x` has a complex dtype."""
    return dtype_name(x).startswith("complex")


def dtype_name(x: Array) -> str:
    """Return the plain name of the dtype of `x`, such as ``"float32"``."""
    return str(getattr(x.dtype, "name", x.dtype)).rsplit(".", maxsplit=1)[-1]


def working_dtype(x: Array) -> Any:
    """Return the dtype in which momentum and factorizations of `x` are kept: float32 at least."""
    return _precision(namespace(x), x.dtype)[0]


def epsilon(x: Array) -> float:
    """Return the spacing of the floating-point numbers at 1 in the dtype of `x`."""
    return _precision(namespace(x), x.dtype)[1]


def largest_number(x: Array) -> float:
    """Return the largest finite number in the dtype of `x`."""
    return _precision(namespace(x), x.dtype)[2]


@functools.cache
def _precision(xp: Namespace, dtype: Any) -> tuple[Any, float, float]:
    name = str(getattr(dtype, "name", dtype)).rsplit(".", maxsplit=1)[-1]
    narrow = name in {"float16", "bfloat16", "float32"}
    info = xp.finfo(dtype)
    return xp.float32 if narrow else xp.float64, float(info.eps), float(info.max)


def widest_float(x: Array) -> Any:
    """Return the widest real dtype that the library of `x` offers as it is set up."""
    xp = namespace(x)
    if compat.is_jax_array(x) and not sys.modules["jax"].config.jax_enable_x64:
        return xp.float32
    return xp.float64
