"""Thin products added to large arrays, in the call by which each library does it in one pass."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from .memory import WRITABLE
from .memory import empty_like as memory_like
from .namespaces import Array, device, library, namespace, size

# Entries of a block of rows: its product is still in a processor's cache when it is added.
_BLOCK = 2**20
# Rows to which BLAS adds at a time, at least: each block reads all of the right factor, which for
# 1024 x 131072 and eight rows took three times as long as this.
_LEAST_ROWS = 512


def row_blocks(rows: int, columns: int, least: int = 1) -> Iterator[slice]:
    """Yield the rows of a matrix in parts of up to a million entries, or of `least` rows."""
    step = max(least, _BLOCK // max(1, columns))
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


def blocks_of(x: Array) -> Iterator[Array]:
    """Yield views of a large array, of up to a million entries each where its rows allow it."""
    if x.ndim == 0 or size(x) <= _BLOCK:
        yield x
    else:
        for rows in row_blocks(x.shape[0], size(x) // x.shape[0]):
            yield x[rows, ...]


def between(start: Array, end: Array, weight: Any) -> Array:
    """Return ``start + weight * (end - start)`` for a single weight, in one pass if possible."""
    if library(namespace(start)) == "torch":
        return sys.modules["torch"].lerp(start, end, weight)
    return start + weight * (end - start)


def weighted_mean(x: Array, y: Array, weight: float, out: Array | None = None) -> Array:
    """Return ``x + weight (y - x)``, where arrays can be written to without a temporary array.

    The result is `out` where that is given, contiguous memory of the shape and dtype of `x`.
    """
    if library(namespace(x)) not in WRITABLE:
        return between(x, y, weight)
    out = memory_like(x) if out is None else out
    for a, b, mean in zip(blocks_of(x), blocks_of(y), blocks_of(out), strict=True):
        mean[...] = a + weight * (b - a)
    return out


# Up to this size one temporary array costs less than blocks of rows.
_SHARED_PRODUCT = 2**17

# Entries up to which all points of a step are made at once: they stay in a processor's cache.
_FEW = 2**16


def made_at_once(arrays: list[Array], count: int) -> bool:
    """Tell whether `count` points are made faster together than one by one: small, on a host."""
    return isinstance(arrays[0], np.ndarray) and count * sum(x.size for x in arrays) <= _FEW


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
    if library(xp) not in WRITABLE:
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


def _scaled_factors(left: Array, right: Array, scale: Any) -> tuple[Array, Array]:
    """Return factors whose product is scaled: the smaller one takes the factor."""
    return (left * scale, right) if size(left) < size(right) else (left, right * scale)


def _add(x: Array, y: Array) -> Array:
    """Add in the precision of `y`, which is no less than that of `x`; return it as `x` is."""
    if isinstance(x, np.ndarray):  # arithmetic of 0-d arrays returns scalars, which are no arrays
        return np.asarray(x + y, dtype=x.dtype)
    if x.dtype == y.dtype:
        return x + y
    xp = namespace(x)
    return xp.astype(xp.astype(x, y.dtype) + y, x.dtype)


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
    least = 1 if gemm is None else _LEAST_ROWS  # BLAS makes no temporary array
    for old, new, a, c in zip(x.reshape(shape), out.reshape(shape), *factors, strict=True):
        for rows in row_blocks(old.shape[0], old.shape[1], least):
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
        if out is x:
            place = out.view(shape)
            if len(left) > 1:
                place.baddbmm_(left, right)
            else:  # `addmm` copies even x to itself
                place[0].addmm_(left[0], right[0])
            return out
        view = None if out is None else out.view(shape)
        if len(left) > 1:
            product = torch.baddbmm(x.reshape(shape), left, right, out=view)
        elif x.device.type == "cpu" and out is not x and size(x) > _BLOCK:
            # addmm copies x first: by blocks, the copy is in the cache when it is added to.
            out = torch.empty(x.shape, dtype=x.dtype) if out is None else out
            old, new = x.reshape(shape[1:]), out.view(shape[1:])
            for rows in row_blocks(old.shape[0], old.shape[1], _LEAST_ROWS):
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
    out = memory_like(x) if out is None else out
    assert out is not None
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
