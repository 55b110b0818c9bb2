"""The functions that have an overlay: what they return with displaced parameters.

Each handler stands for one function of Torch; it is called outside of the mode and computes the
product with the weight as it is, and the low-rank term beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name

from ._torch_overlay import Handler, NotBatchableError, Overlaid, Overlay

HANDLERS: dict[Any, Handler] = {}


def _handles(*functions: Any) -> Callable[[Any], Any]:
    def register(handler: Any) -> Any:
        HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def low_rank(overlay: Overlay, leaf: Overlaid, x: Tensor, y: Tensor, transposed: bool) -> Tensor:
    """Return ``y + x (L R)^T``, or ``y + x (L R)`` for a weight stored the other way round."""
    found = leaf.factors(y.dtype)
    if found is None:
        return y
    left, right = found
    first, second = (left, right) if transposed else (right.mT, left.mT)
    x = x.to(y.dtype)
    if left.ndim == 2 and right.ndim == 2:
        flat = x.reshape(-1, x.shape[-1]) @ first
        return y.reshape(-1, y.shape[-1]).addmm_(flat, second).view(y.shape)
    parts = overlay.rows(x).flatten(1, -2)
    flat = parts @ first if first.ndim == 2 else torch.bmm(parts, first)
    product = flat.flatten(0, 1) @ second if second.ndim == 2 else torch.bmm(flat, second)
    return y + product.view(y.shape)


def _vector(
    overlay: Overlay, leaf: Overlaid, y: Tensor, factor: Tensor | None = None, axis: int = -1
) -> Tensor:
    """Return ``y + v``, or ``y + factor * v``, for the displacement v of a vector along `axis`."""
    value = leaf.vector(y.dtype)
    if value is None:
        return y
    parts = y[None] if value.shape[0] == 1 else overlay.rows(y)
    if axis >= 0:
        shape = [value.shape[0], *[1] * (parts.ndim - 1)]
        shape[axis + 1] = -1
    else:
        inner = value.shape[1:]
        shape = [value.shape[0], *[1] * (parts.ndim - 1 - len(inner)), *inner]
    value = value.view(shape)
    if factor is not None:
        value = value * factor.view(parts.shape)
    return (parts + value).view(y.shape)


def _shrunk(leaf: Overlaid | None, y: Tensor) -> Tensor:
    return y if leaf is None or leaf.shrink is None else y * leaf.shrink.to(y.dtype)


def _bias(overlay: Overlay, bias: Any, y: Tensor, axis: int = -1) -> Tensor:
    """Return `y` with a bias, displaced if it is overlaid."""
    if bias is None:
        return y
    leaf = overlay.find(bias)
    shape = [1] * y.ndim
    shape[axis] = -1
    y = y + _shrunk(leaf, bias.detach()).view(shape).to(y.dtype)
    return y if leaf is None else _vector(overlay, leaf, y, axis=axis)


@_handles(F.linear)
def _linear(overlay: Overlay, func: Any, input: Any, weight: Any, bias: Any = None) -> Any:
    leaf = overlay.find(weight)
    if overlay.find(input) or (leaf is not None and (leaf.kind == "full" or weight.ndim != 2)):
        return NotImplemented
    base = overlay.find(bias)
    simple = (leaf is None or leaf.shrink is None) and (base is None or base.shrink is None)
    if simple:
        y = func(input, weight, bias)
        if base is not None:
            y = _vector(overlay, base, y)
    else:
        y = _bias(overlay, bias, _shrunk(leaf, func(input, weight)))
    return y if leaf is None else low_rank(overlay, leaf, input, y, transposed=False)


@_handles(torch.addmm)
def _addmm(overlay: Overlay, func: Any, input: Any, mat1: Any, mat2: Any, **kwargs: Any) -> Any:
    leaf = overlay.find(mat2)
    usual = overlay.find(mat1) is None and not kwargs and input.ndim == 1
    if not usual or (leaf is not None and leaf.kind == "full"):
        return NotImplemented
    y = _bias(overlay, input, _shrunk(leaf, mat1 @ mat2))
    return y if leaf is None else low_rank(overlay, leaf, mat1, y, transposed=True)


@_handles(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def _matmul(overlay: Overlay, func: Any, input: Any, other: Any) -> Any:
    leaf = overlay.find(other)
    usual = leaf is not None and leaf.kind != "full" and other.ndim == 2 and input.ndim >= 2
    if not usual or overlay.find(input):
        return NotImplemented
    assert leaf is not None
    y = _shrunk(leaf, func(input, other))
    return low_rank(overlay, leaf, input, y, transposed=True)


@_handles(F.embedding)
def _embedding(
    overlay: Overlay, func: Any, input: Any, weight: Any, padding_idx: Any = None,
    max_norm: Any = None, norm_type: float = 2.0, scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:  # fmt: skip
    leaf = overlay.find(weight)
    if leaf is None or leaf.kind == "full" or max_norm is not None:
        return NotImplemented
    y = _shrunk(leaf, func(input, weight))
    found = leaf.factors(y.dtype)
    if found is None:
        return y
    left, right = found
    if left.ndim == 2 and right.ndim == 2:
        return y + left[input] @ right
    if input.shape[0] % overlay.slices:
        raise NotBatchableError(
            f"{leaf.name} is looked up for all slices at once: repeat its indices with tiled"
        )
    parts = overlay.rows(input).flatten(1)
    if left.ndim == 2:
        product = torch.bmm(left[parts], right)
    else:
        rows = torch.stack([one[index] for one, index in zip(left, parts, strict=True)])
        product = rows @ right
    return y + product.view(y.shape)


@_handles(F.conv1d, F.conv2d, F.conv3d)
def _conv(
    overlay: Overlay, func: Any, input: Any, weight: Any, bias: Any = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Any:  # fmt: skip
    leaf = overlay.find(weight)
    if overlay.find(input) or (leaf is not None and leaf.kind == "full"):
        return NotImplemented
    if leaf is not None and leaf.shared is not None and leaf.shared.ndim != 2:
        return NotImplemented  # a stack of kernels
    y = _shrunk(leaf, func(input, weight, None, stride, padding, dilation, groups))
    y = _bias(overlay, bias, y, axis=y.ndim - weight.ndim + 1)
    if leaf is None:
        return y
    found = leaf.factors(y.dtype)
    if found is None:
        return y
    left, right = found
    kernel, ones = weight.shape[1:], [1] * (weight.ndim - 2)
    input = input.to(y.dtype)

    def one(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
        thin = right.reshape(-1, *kernel).repeat(groups, *[1] * len(kernel))
        inner = func(x, thin, None, stride, padding, dilation, groups)
        return func(inner, left.reshape(*left.shape, *ones), groups=groups)

    if left.ndim == 2 and right.ndim == 2:
        return y + one(input, left, right)
    pairs = zip(left, [right] * overlay.slices, strict=True)
    if left.ndim == 2:
        pairs = zip([left] * overlay.slices, right, strict=True)
    parts = [one(x, *pair) for x, pair in zip(overlay.rows(input), pairs, strict=True)]
    return y + torch.cat(parts)


def _normalised(overlay: Overlay, plain: Tensor, weight: Any, bias: Any, axis: int) -> Any:
    """Return the affine part of a normalisation layer, with what its parameters are moved by."""
    y = plain
    if weight is not None:
        leaf = overlay.find(weight)
        shape = [1] * plain.ndim
        if axis >= 0:
            shape[axis] = -1
        else:
            shape[plain.ndim - weight.ndim :] = list(weight.shape)
        y = y * _shrunk(leaf, weight.detach()).view(shape).to(y.dtype)
        if leaf is not None:
            y = _vector(overlay, leaf, y, plain, axis)
    if bias is not None:
        leaf = overlay.find(bias)
        shape = [1] * plain.ndim
        if axis >= 0:
            shape[axis] = -1
        else:
            shape[plain.ndim - bias.ndim :] = list(bias.shape)
        y = y + _shrunk(leaf, bias.detach()).view(shape).to(y.dtype)
        if leaf is not None:
            y = _vector(overlay, leaf, y, axis=axis)
    return y


def _is_vector(overlay: Overlay, *values: Any) -> bool:
    return all((leaf := overlay.find(v)) is None or leaf.kind == "full" for v in values)


@_handles(F.layer_norm)
def _layer_norm(
    overlay: Overlay, func: Any, input: Any, normalized_shape: Any, weight: Any = None,
    bias: Any = None, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if overlay.find(input) or not _is_vector(overlay, weight, bias):
        return NotImplemented
    plain = func(input, normalized_shape, None, None, eps)
    return _normalised(overlay, plain, weight, bias, -1)


@_handles(F.group_norm)
def _group_norm(
    overlay: Overlay, func: Any, input: Any, num_groups: int, weight: Any = None,
    bias: Any = None, eps: float = 1e-5,
) -> Any:  # fmt: skip
    if overlay.find(input) or not _is_vector(overlay, weight, bias):
        return NotImplemented
    return _normalised(overlay, func(input, num_groups, None, None, eps), weight, bias, 1)


@_handles(F.batch_norm)
def _batch_norm(
    overlay: Overlay, func: Any, input: Any, running_mean: Any, running_var: Any,
    weight: Any = None, bias: Any = None, *args: Any, **kwargs: Any,
) -> Any:  # fmt: skip
    if overlay.find(input) or not _is_vector(overlay, weight, bias):
        return NotImplemented
    plain = func(input, running_mean, running_var, None, None, *args, **kwargs)
    return _normalised(overlay, plain, weight, bias, 1)


@_handles(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)
def _mul(overlay: Overlay, func: Any, input: Any, other: Any) -> Any:
    """Multiply by a vector along the last axes, as the scale of a root-mean-square norm does."""
    if isinstance(other, Tensor) and overlay.find(other) is not None:
        input, other = other, input
    leaf = overlay.find(input)
    if leaf is None or leaf.kind != "full" or not isinstance(other, Tensor):
        return NotImplemented
    if overlay.find(other) is not None or other.ndim <= input.ndim:
        return NotImplemented
    if other.shape[-input.ndim :] != input.shape:
        return NotImplemented
    y = _shrunk(leaf, input.detach()) * other
    return _vector(overlay, leaf, y, other.to(y.dtype))
