"""What the array libraries do differently: the only file, beside `sampling`, that names one.

Everything else is written against the namespace that `namespace` returns, which follows the
Python array API standard.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import numbers
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import array_api_compat as compat
import numpy as np

from . import errors

Array = Any
Namespace = Any

_F = TypeVar("_F", bound=Callable[..., Any])

#: name of a backend -> package that must be importable for it
LIBRARIES = {"numpy": "numpy", "torch": "torch", "cupy": "cupy", "jax": "jax"}

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


def library(xp: Namespace) -> str:
    """Name the library behind a namespace: numpy, torch, cupy, jax, or its module's name."""
    name = str(xp.__name__).removeprefix("array_api_compat.")
    return name.split(".")[0]


def device(x: Array) -> Any:
    """Return the device of `x`; None where it is unknown, as under tracing."""
    return "cpu" if isinstance(x, np.ndarray) else compat.device(x)


def size(x: Array) -> int:
    """Return the number of entries of `x`."""
    count: int = math.prod(x.shape)
    return count


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


@functools.cache
def _precision(xp: Namespace, dtype: Any) -> tuple[Any, float]:
    name = str(getattr(dtype, "name", dtype)).rsplit(".", maxsplit=1)[-1]
    return xp.float64 if name == "float64" else xp.float32, float(xp.finfo(dtype).eps)


def detach(x: Array) -> Array:
    """Return `x` without the graph that an autograd library may have attached to it."""
    return x.detach() if compat.is_torch_array(x) else x


def copy(x: Array) -> Array:
    """Return a copy that shares no memory with `x`."""
    return namespace(x).asarray(x, copy=True)


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


def from_host(values: Array, like: Array) -> Array:
    """Return NumPy `values` in the library and on the device of `like`, in its working dtype."""
    xp = namespace(like)
    dtype = working_dtype(like)
    if xp is np:
        if values.dtype == dtype:
            return values
        with np.errstate(over="ignore"):  # infinity is what the caller looks for
            return values.astype(dtype)
    if not values.flags.writeable and library(xp) == "torch":
        values = values.copy()  # torch warns of memory that it could write to
    return xp.asarray(values, dtype=dtype, device=device(like))


def to_like(values: Array, like: Array) -> Array:
    """Return `values` (NumPy, or of the library of `like`) in the working dtype of `like`."""
    xp = namespace(like)
    if xp is np or namespace(values) is not xp:
        return from_host(to_host(values), like)
    dtype = working_dtype(like)
    return values if values.dtype == dtype else xp.astype(values, dtype)


def scalar_loss(value: Any) -> Any:
    """Return one loss as a Python float or as a 0-d array; raise if it is neither."""
    if isinstance(value, float):
        return value
    if isinstance(value, numbers.Real):  # int, bool, NumPy's real scalars, fractions
        return float(value)
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
    arrays = [s for s in scalars if not isinstance(s, float)]
    if not arrays:
        return np.asarray(scalars, dtype=np.float64)
    xp = namespace(arrays[0])
    like = arrays[0]
    return loss_vector(
        xp.stack([xp.asarray(s, dtype=like.dtype, device=device(like)) for s in scalars])
    )


def loss_vector(losses: Array) -> Array:
    """Return 1-d `losses` as float32 or float64, without their graph if they have one."""
    if isinstance(losses, np.ndarray) and losses.dtype.kind in "fiub":
        return losses.astype(np.float64, copy=False)
    if is_complex(losses) or isinstance(losses, np.ndarray):
        raise errors.loss_not_real(losses, f"an array of dtype {losses.dtype}")
    losses = detach(losses)
    xp = namespace(losses)
    if dtype_name(losses) in {"float32", "float64"}:
        return losses
    return xp.astype(losses, xp.float32)


def low_rank_update(x: Array, left: Array | None, right: Array, scale: Any) -> Array:
    """Return ``x + scale * (left @ right)`` as a new array of the shape and dtype of `x`.

    Parameters
    ----------
    x : array
        Of any shape with as many entries as the product; it is left as it is.
    left : array of shape (..., m, r), or None
        None stands for the identity: then `right` itself is added.
    right : array of shape (..., r, n)
    scale : float or 0-d array
        In the dtype of the factors if it is an array.
    """
    xp = namespace(x)
    if left is None:
        return _add(x, right * scale)
    # The factors are small beside the product: the scale goes into the smaller one.
    if size(left) < size(right):
        left = left * scale
    else:
        right = right * scale
    if xp is np:
        product = np.matmul(left, right).reshape(x.shape)
        if product.dtype != x.dtype:
            return _add(x, product)
        product += x
        return product
    if left.ndim == 2 and right.dtype == x.dtype and library(xp) == "torch":
        view = x.reshape((left.shape[0], right.shape[1]))
        return xp.addmm(view, left, right).reshape(x.shape)
    return _add(x, xp.reshape(left @ right, x.shape))


# Up to this size two additions of one product cost less than two products, and the second
# candidate that waits for its turn costs little memory.
_SHARED_PRODUCT = 2**17


def low_rank_pair(
    x: Array, left: Array | None, right: Array, scale: float
) -> tuple[Array, Array] | None:
    """Return ``x + scale * (left @ right)`` and ``x - scale * (left @ right)`` from one product.

    The results have the bits of two calls of `low_rank_update`. None where two calls are better.
    """
    if not isinstance(x, np.ndarray) or x.size > _SHARED_PRODUCT or right.dtype != x.dtype:
        return None
    if left is None:
        plus = right * scale
    elif left.size < right.size:
        plus = np.matmul(left * scale, right).reshape(x.shape)
    else:
        plus = np.matmul(left, right * scale).reshape(x.shape)
    minus = x - plus
    plus += x
    return plus, minus


def _add(x: Array, y: Array) -> Array:
    """Add in the precision of `y`, which is no less than that of `x`; return it as `x` is."""
    if x.dtype == y.dtype:
        return x + y
    xp = namespace(x)
    return xp.astype(xp.astype(x, y.dtype) + y, x.dtype)


def shrink(x: Array, factor: Any) -> Array:
    """Return ``(1 - factor) * x`` in the dtype of `x`."""
    xp = namespace(x)
    dtype = working_dtype(x)
    if x.dtype == dtype:
        return x - x * factor
    wide = xp.astype(x, dtype)
    return xp.astype(wide - wide * factor, x.dtype)


def compiled(function: _F, like: Array) -> _F:
    """Return `function` compiled where the library of `like` compiles, else as it is."""
    if isinstance(like, np.ndarray) or not compat.is_jax_array(like):
        return function
    result: _F = _jit(function)
    return result


# Equal methods of two runs meet here again and need not be compiled twice.
@functools.lru_cache(maxsize=64)
def _jit(function: Callable[..., Any]) -> Any:
    import jax

    return jax.jit(function)


_STATIC: set[type] = set()


def register_static(cls: type, like: Array) -> None:
    """Let instances of `cls` pass as constants through what the library of `like` compiles."""
    if cls in _STATIC or not compat.is_jax_array(like):
        return
    import jax

    jax.tree_util.register_static(cls)
    _STATIC.add(cls)


def on_gpu(x: Array) -> bool:
    """Tell whether `x` lives on a GPU."""
    if compat.is_torch_array(x):
        return bool(x.device.type == "cuda")
    if compat.is_jax_array(x):
        return any(d.platform == "gpu" for d in x.devices())
    return bool(compat.is_cupy_array(x))


def synchronize(x: Array) -> None:
    """Wait until the device of `x` has computed it; for clocks, never for a step."""
    if compat.is_torch_array(x):
        if x.device.type == "cuda":
            sys.modules["torch"].cuda.synchronize(x.device)
    elif compat.is_cupy_array(x):
        sys.modules["cupy"].cuda.get_current_stream().synchronize()
    elif compat.is_jax_array(x):
        x.block_until_ready()


def installed(name: str) -> bool:
    """Tell whether the library of backend `name` can be imported, without importing it."""
    return importlib.util.find_spec(LIBRARIES[name]) is not None


def backend(name: str, device: str | None = None) -> tuple[Namespace, Any]:
    """Return the namespace of a backend and the device object of its library for a device's name.

    Parameters
    ----------
    name : str
        ``"numpy"``, ``"torch"``, ``"cupy"`` or ``"jax"``.
    device : str, optional
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; by default the library's own choice.

    Raises
    ------
    ValueError
        If the backend is unknown or the device cannot be used.
    ImportError
        If the library is not installed; the message names the extra that brings it.
    """
    if name not in LIBRARIES:
        raise errors.unknown_name("backend", name, LIBRARIES)
    if not installed(name):
        raise errors.missing_extra(LIBRARIES[name], name)
    importlib.import_module(LIBRARIES[name])
    if name == "jax":
        xp = importlib.import_module("jax.numpy")
    elif name == "numpy":
        xp = np
    else:
        xp = importlib.import_module(f"array_api_compat.{name}")
    try:
        found = _device_of(name, device)
        xp.ones((1,), device=found) + 1
    except Exception as error:
        cause = str(error).strip().splitlines() or [type(error).__name__]
        raise errors.device_not_found(name, device or "default", cause[0]) from error
    return xp, found


def _device_of(name: str, device: str | None) -> Any:
    kind, _, index = (device or "").partition(":")
    if device is not None and (kind not in {"cpu", "cuda"} or not (index or "0").isdigit()):
        raise ValueError("the names are cpu, cuda, cuda:0, cuda:1, ...")
    if name == "numpy":
        if kind == "cuda":
            raise ValueError("it computes on the CPU only")
        return None
    if name == "torch":
        return None if device is None else sys.modules["torch"].device(device)
    if name == "cupy":
        if kind == "cpu":
            raise ValueError("it computes on GPUs only")
        return sys.modules["cupy"].cuda.Device(int(index or 0))
    if device is None:
        return None
    return sys.modules["jax"].devices("gpu" if kind == "cuda" else "cpu")[int(index or 0)]


def describe_backends() -> list[tuple[str, str, str]]:
    """Return (name, version, devices) of every backend, found or not, for people to read."""
    rows = []
    for name, package in LIBRARIES.items():
        if not installed(name):
            rows.append((name, "not installed", f"pip install 'zomopi[{name}]'"))
            continue
        try:
            module = importlib.import_module(package)
            rows.append((name, str(module.__version__), ", ".join(_devices(name, module))))
        except Exception as error:  # a broken installation is a finding, not a crash
            rows.append((name, "cannot be imported", str(error).splitlines()[0]))
    return rows


def _devices(name: str, module: Any) -> list[str]:
    if name == "numpy":
        return ["cpu"]
    if name == "torch":
        count = module.cuda.device_count() if module.cuda.is_available() else 0
        names = [module.cuda.get_device_name(i) for i in range(count)]
        return ["cpu", *(f"cuda:{i} ({n})" for i, n in enumerate(names))]
    if name == "cupy":
        if not module.cuda.is_available():
            return ["no GPU found"]
        count = module.cuda.runtime.getDeviceCount()
        names = [module.cuda.runtime.getDeviceProperties(i)["name"].decode() for i in range(count)]
        return [f"cuda:{i} ({n})" for i, n in enumerate(names)]
    return [f"{d.platform}:{d.id} ({d.device_kind})" for d in module.devices()]
