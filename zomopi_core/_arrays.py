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
import os
import platform
import sys
from collections.abc import Callable, Iterator
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
# NumPy has one object for each of these, so that a look at the identity tells them apart.
_SINGLE, _DOUBLE = np.dtype(np.float32), np.dtype(np.float64)


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


def copy(x: Array, out: Array | None = None) -> Array:
    """Return a copy that shares no memory with `x`; of NumPy's subclasses a plain array.

    It is `out` where that is given, an array of the shape and dtype of `x`.
    """
    if out is not None and library(namespace(x)) in _WRITABLE:
        out[...] = x
        return out
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


def thaw(x: Array) -> Array:
    """Return memory like `x`, known to the caller alone: `x` itself where it can be opened."""
    if isinstance(x, np.ndarray):
        try:
            x.flags.writeable = True
        except ValueError:  # what was unpickled lies in memory of its own kind
            return np.empty_like(x)
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
        dtype = like.dtype
        if dtype is not _SINGLE and dtype is not _DOUBLE:
            dtype = np.dtype(working_dtype(like))
        if isinstance(values, np.ndarray | np.generic):
            return values if values.dtype is dtype else from_host(np.asarray(values), like)
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
    x: Array,
    left: Array | None,
    right: Array,
    scale: Any,
    decay: Any = None,
    *,
    out: Array | None = None,
) -> Array:
    """Return ``(1 - decay) x + scale * (left @ right)`` in one pass over `x`, where possible.

    No other array of the size of `x` is made where the library has a product that adds to what
    is there: BLAS through SciPy, `addmm` of Torch, cuBLAS through CuPy; NumPy alone and 16-bit
    parameters take blocks of rows.

    Parameters
    ----------
    x : array
        Of any shape with as many entries as the product; it is left as it is, unless it is `out`.
    left : array of shape (..., m, r), or None
        None stands for the identity: then `right` itself is added.
    right : array of shape (..., r, n)
    scale : float or 0-d array
        In the dtype of the factors if it is an array.
    decay : float or 0-d array, optional
    out : array, optional
        Contiguous array of the shape and dtype of `x` for the result, or `x` itself. Libraries
        that change no array return a new one nevertheless.

    Returns
    -------
    array
        `out`, or a new array of the dtype and shape of `x`.
    """
    if isinstance(x, np.ndarray):
        return _update_numpy(x, left, right, scale, decay, out)
    xp = namespace(x)
    own = _UPDATES.get(library(xp))
    if own is not None:
        return own(x, left, right, scale, decay, out)
    if decay is not None:
        wide = x if x.dtype == right.dtype else xp.astype(x, right.dtype)
        result = low_rank_update(wide - wide * decay, left, right, scale)
        return result if x.dtype == right.dtype else xp.astype(result, x.dtype)
    if left is None:
        return _add(x, xp.reshape(right, x.shape) * scale)
    left, right = _scaled_factors(left, right, scale)
    return _add(x, xp.reshape(left @ right, x.shape))


def _scaled_factors(left: Array, right: Array, scale: Any) -> tuple[Array, Array]:
    """Return factors whose product is scaled: the smaller one takes the factor."""
    return (left * scale, right) if size(left) < size(right) else (left, right * scale)


# Entries of a block of rows: its product is still in a processor's cache when it is added.
_BLOCK = 2**20


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Yield the rows of a matrix in parts of up to a million entries."""
    step = max(1, _BLOCK // max(1, columns))
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def blocks_of(x: Array) -> Iterator[Array]:
    """Yield views of a large array, of up to a million entries each where its rows allow it."""
    if x.ndim == 0 or size(x) <= _BLOCK:
        yield x
    else:
        for rows in row_blocks(x.shape[0], size(x) // x.shape[0]):
            yield x[rows, ...]


def _update_numpy(
    x: Array, left: Array | None, right: Array, scale: Any, decay: Any, out: Array | None
) -> Array:
    wide = x.dtype != right.dtype
    if left is None or (x.size <= _SHARED_PRODUCT and out is None):
        # One temporary array, which becomes the result, costs less than blocks.
        if left is None:
            change = right * scale
        else:
            left, right = _scaled_factors(left, right, scale)
            change = np.matmul(left, right)
        if change.shape != x.shape:
            change = change.reshape(x.shape)
        base = x
        if decay is not None:
            base = x.astype(change.dtype, copy=False)
            base = base - base * decay
        if out is not None:
            return np.add(base, change, out=out, casting="same_kind")
        if wide or x.ndim == 0:  # arithmetic of 0-d arrays returns scalars, which are no arrays
            return np.asarray(base + change, dtype=x.dtype)
        change += base
        return change
    out = np.empty(x.shape, x.dtype) if out is None else out
    shape = (-1, left.shape[-2], right.shape[-1])
    keep = 1.0 if decay is None else 1.0 - float(decay)
    gemm = None if wide else _blas_product(x.dtype)
    left, right = np.ascontiguousarray(left), np.ascontiguousarray(right)
    if gemm is None:
        left, right = _scaled_factors(left, right, scale)
    factors = (f.reshape(-1, *f.shape[-2:]) for f in (left, right))
    for old, new, a, c in zip(x.reshape(shape), out.reshape(shape), *factors, strict=True):
        for rows in row_blocks(*old.shape):
            if gemm is None:
                _add_product(old[rows], a[rows], c, keep, new[rows])
            else:
                if new is not old and out is not x:
                    np.copyto(new[rows], old[rows])
                # BLAS counts by columns: the transposes of arrays in C order are in its order.
                gemm(float(scale), c.T, a[rows].T, keep, new[rows].T, overwrite_c=True)
    return out


def _add_product(x: Array, left: Array, right: Array, keep: float, out: Array) -> None:
    """Write ``keep x + left @ right`` into `out`, of a few rows."""
    product = np.matmul(left, right)
    if keep != 1:
        x = x * keep if x.dtype == product.dtype else x.astype(product.dtype) * keep
    np.add(x, product, out=out, casting="same_kind")


@functools.cache
def _blas_product(dtype: Any) -> Any:
    """Return BLAS's gemm for a dtype, which adds to what is there; None without SciPy."""
    if dtype not in (np.float32, np.float64) or importlib.util.find_spec("scipy") is None:
        return None
    blas = importlib.import_module("scipy.linalg.blas")
    return blas.sgemm if dtype == np.float32 else blas.dgemm


def _update_torch(
    x: Array, left: Array | None, right: Array, scale: Any, decay: Any, out: Array | None
) -> Array:
    torch = sys.modules["torch"]
    if left is None:
        change = right.reshape(x.shape) * scale
        change += x
        if decay is not None:
            change -= x.to(change.dtype) * decay
        return change.to(x.dtype) if out is None else out.copy_(change)
    left, right = _scaled_factors(left, right, scale)
    shape = (-1, left.shape[-2], right.shape[-1])
    left, right = (f.reshape(-1, *f.shape[-2:]) for f in (left, right))
    if x.dtype == right.dtype:
        if decay is not None:
            # New memory is contiguous, whatever that of x is.
            out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
            x = torch.mul(x, 1.0 - decay, out=out)
        view = None if out is None else out.view(shape)
        if len(left) > 1:
            product = torch.baddbmm(x.reshape(shape), left, right, out=view)
        elif x.device.type == "cpu" and out is not x and size(x) > _BLOCK:
            # addmm copies x first: by blocks, the copy is in the cache when it is added to.
            out = torch.empty(x.shape, dtype=x.dtype) if out is None else out
            old, new = x.reshape(shape[1:]), out.view(shape[1:])
            for rows in row_blocks(*old.shape):
                torch.addmm(old[rows], left[0][rows], right[0], out=new[rows])
            return out
        else:
            view = None if view is None else view[0]
            product = torch.addmm(x.reshape(shape[1:]), left[0], right[0], out=view)
        return product.reshape(x.shape) if out is None else out
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    for old, new, a, c in zip(x.reshape(shape), out.view(shape), left, right, strict=True):
        for rows in row_blocks(*old.shape):
            base = old[rows].to(c.dtype)
            new[rows] = (base if decay is None else base * (1.0 - decay)).addmm_(a[rows], c)
    return out


def _update_cupy(
    x: Array, left: Array | None, right: Array, scale: Any, decay: Any, out: Array | None
) -> Array:
    cupy = sys.modules["cupy"]
    if left is None:
        change = right.reshape(x.shape) * scale
        change += x if decay is None else x - x * decay
        if out is None:
            return change.astype(x.dtype, copy=False)
        out[...] = change
        return out
    left, right = _scaled_factors(left, right, scale)
    shape = (-1, left.shape[-2], right.shape[-1])
    left, right = (f.reshape(-1, *f.shape[-2:]) for f in (left, right))
    fused = importlib.import_module("cupy.cublas").gemm if x.dtype == right.dtype else None
    out = cupy.empty(x.shape, x.dtype) if out is None else out
    for old, new, a, c in zip(x.reshape(shape), out.reshape(shape), left, right, strict=True):
        if fused is not None:
            if decay is not None:
                cupy.multiply(old, 1.0 - decay, out=new)
            elif out is not x:
                cupy.copyto(new, old)
            fused("N", "N", a, c, out=new, alpha=1.0, beta=1.0)
            continue
        for rows in row_blocks(*old.shape):
            product = a[rows] @ c
            product += old[rows] if decay is None else old[rows] * (1.0 - decay)
            new[rows] = product
    return out


_UPDATES = {"torch": _update_torch, "cupy": _update_cupy}
# libraries whose arrays are written to
_WRITABLE = {"numpy", *_UPDATES}


def empty_like(x: Array, count: int | None = None) -> Array | None:
    """Return memory for an array like `x`, or for a stack of `count`; None if it cannot be used.

    Arrays of JAX and of the bare standard are not written to.
    """
    xp = namespace(x)
    if library(xp) not in _WRITABLE:
        return None
    shape = tuple(x.shape) if count is None else (count, *x.shape)
    return xp.empty(shape, dtype=x.dtype, device=device(x))


def low_rank_stack(
    x: Array, left: Array, rights: Array, *, mirrored: bool = False, out: Array | None = None
) -> Array:
    """Return ``x + left @ rights[i]`` for all i, stacked, from one batched product.

    Parameters
    ----------
    x : array
        In the dtype of the factors.
    left : array of shape (..., m, r)
    rights : array of shape (q, ..., r, n)
    mirrored : bool
        Whether ``x - left @ rights[i]`` follows each.
    out : array of shape (q, *shape) or (2q, *shape), optional

    Returns
    -------
    array
        `out`, or a new one.
    """
    xp, step = namespace(x), 2 if mirrored else 1
    shape = (rights.shape[0], *x.shape)
    if library(xp) not in _WRITABLE:
        product = xp.reshape(left @ rights, shape)
        if not mirrored:
            return x + product
        return xp.reshape(xp.stack([x + product, x - product], axis=1), (-1, *x.shape))
    if out is None:
        out = xp.empty((step * shape[0], *x.shape), dtype=x.dtype, device=device(x))
    # Reshaped before every other point is left out: what follows must stay a view.
    view = out.reshape((-1, *rights.shape[1:-2], left.shape[-2], rights.shape[-1]))
    own = sys.modules[library(xp)]
    own.matmul(left, rights, out=view[::step])
    plus = out[::step]
    if mirrored:
        own.subtract(x, plus, out=out[1::2])
    plus += x
    return out


def joined(before: list[Array], stack: Array, behind: list[Array]) -> Array:
    """Return arrays, the entries of a stack (it may be an empty list) and arrays as one stack."""
    like = (before + behind)[0] if before or behind else stack
    xp = namespace(like)
    parts = [before and xp.stack(before), stack, behind and xp.stack(behind)]
    parts = [p for p in parts if is_array(p)]
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=0)


# Up to this size one temporary array costs less than blocks of rows.
_SHARED_PRODUCT = 2**17
# Entries up to which all points of a step are made at once: they stay in a processor's cache.
_FEW = 2**16


def made_at_once(arrays: list[Array], count: int) -> bool:
    """Tell whether `count` points are made faster together than one by one: small, on a host."""
    return isinstance(arrays[0], np.ndarray) and count * sum(x.size for x in arrays) <= _FEW


def _add(x: Array, y: Array) -> Array:
    """Add in the precision of `y`, which is no less than that of `x`; return it as `x` is."""
    if isinstance(x, np.ndarray):  # arithmetic of 0-d arrays returns scalars, which are no arrays
        return np.asarray(x + y, dtype=x.dtype)
    if x.dtype == y.dtype:
        return x + y
    xp = namespace(x)
    return xp.astype(xp.astype(x, y.dtype) + y, x.dtype)


def compiled(function: _F, like: Array, *, donate: bool = False) -> _F:
    """Return `function` compiled where the library of `like` compiles, else as it is.

    With `donate` the memory of the first argument is taken over for the results; whoever still
    holds its arrays finds them deleted.
    """
    if isinstance(like, np.ndarray) or not compat.is_jax_array(like):
        return function
    if donate:
        return _jit_donating(function)  # type: ignore[no-any-return]
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


@functools.lru_cache(maxsize=16)
def _jit_donating(function: Callable[..., Any]) -> Any:
    import jax

    def precise(*arguments: Any) -> Any:
        with _full_precision():
            return function(*arguments)

    return jax.jit(precise, donate_argnums=0, keep_unused=True)


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


def can_branch(x: Array) -> bool:
    """Tell whether a value of `x` may be looked at without waiting: on a host, not traced."""
    return isinstance(x, np.ndarray) or (compat.is_torch_array(x) and x.device.type == "cpu")


def inverse_cholesky_factor(gram: Array) -> Array | None:
    """Return R^-1 for ``R^T R = gram`` (..., k, k), upper triangular.

    Where `gram` is not positive definite the result is None on a host, and numbers without a
    meaning or NaN elsewhere; no device is waited for.
    """
    xp = namespace(gram)
    name = library(xp)
    if name == "torch":
        torch = sys.modules["torch"]
        factor, info = torch.linalg.cholesky_ex(gram)
        if gram.device.type == "cpu" and bool(torch.any(info)):
            return None
        identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_triangular(factor, identity.expand_as(gram), upper=False).mT
    if name == "jax":
        jax = importlib.import_module("jax")
        factor = xp.linalg.cholesky(gram)
        identity = xp.broadcast_to(xp.eye(gram.shape[-1], dtype=gram.dtype), gram.shape)
        inverse = jax.scipy.linalg.solve_triangular(factor, identity, lower=True)
        return xp.matrix_transpose(inverse)
    try:
        factor = xp.linalg.cholesky(gram)
    except np.linalg.LinAlgError:
        return None
    return transposed(xp.linalg.inv(factor))


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


def backend_of(x: Array) -> tuple[str, str | None]:
    """Return the name of the library of `x` and its device's, as `backend` takes them."""
    name = library(namespace(x))
    if not on_gpu(x):
        return name, None
    return name, str(x.device) if name == "torch" else "cuda"


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


def surroundings(x: Array) -> dict[str, str]:
    """Return what the bits of a computation on `x` depend on, beside the program.

    Returns
    -------
    dict of str to str
        ``"library"``, ``"version"``, ``"device"`` (a CPU's or GPU's model), ``"threads"``, and
        for NumPy ``"scipy"``, its version.
    """
    name = library(namespace(x))
    version = str(getattr(sys.modules.get(name), "__version__", "unknown"))
    threads = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS") or ""
    if name == "torch":
        threads = str(sys.modules["torch"].get_num_threads())
    elif not threads.isdigit():
        threads = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else "")
    result = {"library": name, "version": version, "device": _model(x), "threads": threads}
    if name == "numpy":  # whose products are added by SciPy's BLAS where there is one
        result["scipy"] = installed_version("scipy") or "none"
    return result


@functools.cache
def installed_version(package: str) -> str | None:
    """Return the version of an installed package, None for one that is not installed."""
    # Half of the time that the import of this package would take is this module's.
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _model(x: Array) -> str:
    if compat.is_torch_array(x) and x.device.type == "cuda":
        return str(sys.modules["torch"].cuda.get_device_name(x.device))
    if compat.is_cupy_array(x):
        properties = sys.modules["cupy"].cuda.runtime.getDeviceProperties(x.device.id)
        return str(properties["name"].decode())
    if on_gpu(x):
        return str(next(iter(x.devices())).device_kind)
    return _cpu()


@functools.cache
def _cpu() -> str:
    """Return the model of the CPU, or its architecture where the system does not tell."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
