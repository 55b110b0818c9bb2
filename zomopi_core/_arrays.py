"""What the array libraries do differently: the only file, beside `sampling`, that names one.

Everything else is written against the namespace that `namespace` returns, which follows the
Python array API standard.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
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


def largest_number(x: Array) -> float:
    """Return the largest finite number in the dtype of `x`."""
    return _precision(namespace(x), x.dtype)[2]


@functools.cache
def _precision(xp: Namespace, dtype: Any) -> tuple[Any, float, float]:
    name = str(getattr(dtype, "name", dtype)).rsplit(".", maxsplit=1)[-1]
    narrow = name in {"float16", "bfloat16", "float32"}
    info = xp.finfo(dtype)
    return xp.float32 if narrow else xp.float64, float(info.eps), float(info.max)


def detach(x: Array) -> Array:
    """Return `x` without the graph that an autograd library may have attached to it."""
    return x.detach() if compat.is_torch_array(x) else x


def copy(x: Array) -> Array:
    """Return a copy that shares no memory with `x`; of NumPy's subclasses a plain array."""
    if isinstance(x, np.ndarray):
        return np.array(x)
    return namespace(x).asarray(x, copy=True, device=device(x))


def has_meaning_of_its_own(x: Array) -> bool:
    """Tell whether `x` is of a NumPy subclass whose entries or operators are not an array's."""
    return isinstance(x, np.ma.MaskedArray | np.matrix)


def freeze(x: Array) -> Array:
    """Return `x`, guarded against changes in place where its library can do that."""
    if isinstance(x, np.ndarray):
        x.flags.writeable = False
    return x


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
        if isinstance(values, np.ndarray | np.generic) and values.dtype == working_dtype(like):
            return values
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


def widest_float(x: Array) -> Any:
    """Return the widest real dtype that the library of `x` offers as it is set up."""
    xp = namespace(x)
    if compat.is_jax_array(x) and not sys.modules["jax"].config.jax_enable_x64:
        return xp.float32
    return xp.float64


def low_rank_update(
    x: Array, left: Array | None, right: Array, scale: Any, decay: Any = None
) -> Array:
    """Return ``(1 - decay) x + scale * (left @ right)`` as a new array, of dtype and shape of `x`.

    Parameters
    ----------
    x : array
        Of any shape with as many entries as the product; it is left as it is.
    left : array of shape (..., m, r), or None
        None stands for the identity: then `right` itself is added.
    right : array of shape (..., r, n)
    scale : float or 0-d array
        In the dtype of the factors if it is an array.
    decay : float or 0-d array, optional
    """
    xp = namespace(x)
    if decay is not None:
        wide = x if x.dtype == right.dtype else xp.astype(x, right.dtype)
        result = low_rank_update(wide - wide * decay, left, right, scale)
        return result if x.dtype == right.dtype else xp.astype(result, x.dtype)
    if left is None:
        if right.shape != x.shape:
            right = xp.reshape(right, x.shape)
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
        if x.ndim == 0:
            return None
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
    if isinstance(x, np.ndarray):  # arithmetic of 0-d arrays returns scalars, which are no arrays
        return np.asarray(x + y, dtype=x.dtype)
    if x.dtype == y.dtype:
        return x + y
    xp = namespace(x)
    return xp.astype(xp.astype(x, y.dtype) + y, x.dtype)


def compiled(function: _F, like: Array) -> _F:
    """Return `function` compiled where the library of `like` compiles, else as it is."""
    if isinstance(like, np.ndarray) or not compat.is_jax_array(like):
        return function
    owner = getattr(function, "__self__", None)
    try:
        hash(owner)
    except TypeError:
        return _jit.__wrapped__(function, None)  # type: ignore[no-any-return]
    result: _F = _jit(function if owner is None else function.__func__, owner)  # type: ignore[attr-defined]
    return result


# Equal owners of a method meet here again, and what two runs share is compiled once.
@functools.lru_cache(maxsize=64)
def _jit(function: Callable[..., Any], owner: Any) -> Any:
    import jax

    def precise(*arguments: Any) -> Any:
        with _full_precision():
            return function(*arguments) if owner is None else function(owner, *arguments)

    return jax.jit(precise)


def _full_precision() -> Any:
    return sys.modules["jax"].default_matmul_precision("float32")


_NOTHING = contextlib.nullcontext()


def full_precision(like: Array) -> Any:
    """Return a context in which matrix products keep the digits of their arguments.

    On recent GPUs JAX multiplies float32 matrices with 10 bits of mantissa unless told otherwise;
    the other libraries do so only where they are asked to.
    """
    if isinstance(like, np.ndarray) or not compat.is_jax_array(like):
        return _NOTHING
    return _full_precision()


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
