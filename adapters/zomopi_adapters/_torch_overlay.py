"""Perturbations computed beside the weights: ``y = x W^T + (x R^T) L^T``.

A mode looks at the functions that a forward pass calls. Where one takes a parameter that is
overlaid, the low-rank term is added to what it returns; a function for which no such rule is
known gets the perturbed weight, made for this one call. The weights themselves are never touched.

With several slices (`Overlay.slices`), each of the equal parts of the first axis has a
perturbation of its own, and the product with the weight is shared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.overrides import TorchFunctionMode

from zomopi_core.update import Change

from ._torch_leaf import HALF, Accumulating, Source


class NotBatchableError(Exception):
    """A forward pass does something that several probes cannot share."""


class Overlaid(Accumulating):
    """A parameter whose displacement is added to the outputs of the functions that use it."""

    binding = "overlay"

    def __init__(self, *args: Any, mergeable: bool = True) -> None:
        super().__init__(*args)
        self.mergeable = mergeable
        self.places: list[tuple[Tensor | None, float]] = []  # of the slices: varying and scale

    def refresh(self, source: Source) -> None:
        """Draw a new frame; where the weight cannot take the coordinates up, keep the first."""
        if self.mergeable:
            super().refresh(source)

    def move(self, source: Source, probe: int | None, scale: float) -> None:
        """Stand at one probe."""
        if probe is not None and (probe != self.probe or self._held is None):
            self._held = self.varying(source, probe)
        if probe is None:
            self._held = None
        self.probe, self.scale = probe, scale
        self.places = []

    def spread(self, source: Source, places: list[tuple[int | None, float]]) -> None:
        """Stand at several probes, one for each slice of the inputs."""
        probes = {i for i, _ in places if i is not None}
        drawn = {i: self.varying(source, i) for i in sorted(probes)}
        self.places = [(None if i is None else drawn[i], scale) for i, scale in places]

    def accept(self, source: Source, change: Change) -> None:
        """Add the step to the coordinates."""
        super().accept(source, change)
        self.places = []

    def load_extra(self, extra: dict[str, Tensor]) -> None:
        """Take over the coordinates and the factor of the weight."""
        super().load_extra(extra)
        self.places = []

    def merge(self, source: Source) -> None:
        """Bring the coordinates into the weight; 16-bit weights are rounded stochastically."""
        if not self.mergeable or (self.total is None and self.shrink is None):
            return
        self._write(self.param, self.param, self.total, source)
        self.total = self.shrink = None

    def displacements(self) -> list[Tensor | None]:
        """Return the varying factor of the displacement of each slice."""
        if not self.places:
            return [self.displacement()]
        result: list[Tensor | None] = []
        for held, scale in self.places:
            if held is None:
                result.append(self.total)
            elif self.total is None:
                result.append(held * scale)
            else:
                result.append(torch.add(self.total, held, alpha=scale))
        return result

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Return (L, R) whose product is added to the weight, one of them stacked over slices.

        In 16 bits the steps and the probe have columns of their own, so that the larger ones do
        not round the smaller ones away.
        """
        places = self.places or [(self._held if self.probe is not None else None, self.scale)]
        if self.total is None and all(held is None for held, _ in places):
            return None
        assert self.shared is not None
        shared = self.shared.to(dtype)
        across = -2 if self.kind == "left" else -1
        if dtype in HALF and self.total is not None and any(h is not None for h, _ in places):
            parts = [
                torch.cat(
                    [
                        self.total.to(dtype),
                        torch.zeros_like(self.total, dtype=dtype)
                        if held is None
                        else (held * scale).to(dtype),
                    ],
                    dim=across,
                )
                for held, scale in places
            ]
            shared = torch.cat([shared, shared], dim=-1 if self.kind == "left" else -2)
        else:
            parts = [
                (torch.zeros_like(self._like()) if d is None else d).to(dtype)
                for d in self.displacements()
            ]
        varying = parts[0] if not self.places else torch.stack(parts)
        return (shared, varying) if self.kind == "left" else (varying, shared)

    def _like(self) -> Tensor:
        for held, _ in self.places:
            if held is not None:
                return held
        assert self.total is not None
        return self.total

    def vector(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to a parameter in its full space, (slices, *shape)."""
        parts = self.displacements()
        if all(p is None for p in parts):
            return None
        zero = torch.zeros_like(self.state.momentum)
        return torch.stack([zero if p is None else p for p in parts]).to(dtype)

    def materialised(self) -> Tensor:
        """Return the displaced parameter as an array of its own."""
        if len(self.places) > 1:
            raise NotBatchableError(
                f"{self.name} is used by a function that no overlay is known for"
            )
        value = torch.empty_like(self.param)
        displacement = self.displacements()[0]
        self._write(value, self.param.detach(), displacement, None)
        return value


class OverlaidForward:
    """The forward of a model with the overlay switched on; a copy of the model has the plain one.

    Parameters
    ----------
    model : torch.nn.Module
    overlay : Overlay
    """

    def __init__(self, model: Any, overlay: Overlay) -> None:
        self.__wrapped__ = model.forward  # by which its signature is found
        self._model, self._overlay = model, overlay

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._overlay.on():
            return self.__wrapped__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return getattr(type(self._model), "forward").__get__(memo[id(self._model)])  # noqa: B009

    def __reduce__(self) -> Any:
        return getattr, (self._model, "forward")


class Overlay(TorchFunctionMode):  # type: ignore[misc]
    """The mode in which overlaid parameters act as if they were displaced."""

    def __init__(self) -> None:
        super().__init__()
        self.leaves: dict[int, Overlaid] = {}
        self.slices = 1
        self.materialised: set[str] = set()
        self.active = False

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        """Switch the mode on, once however often it is asked for; what is compiled runs eagerly.

        A compiled forward pass would have the perturbations of one step built in.
        """
        if self.active or not self.leaves:
            yield
            return
        self.active = True
        try:
            with torch.compiler.set_stance("force_eager"), self:
                yield
        finally:
            self.active = False

    def find(self, value: Any) -> Overlaid | None:
        """Return the leaf of a parameter, None for any other value."""
        return self.leaves.get(id(value)) if isinstance(value, Tensor) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.slices > 1:
            _refuse(func, args, kwargs)
            if func is F.dropout:
                return self._dropout(*args, **kwargs)
            if func is F.scaled_dot_product_attention:
                return self._attention(*args, **kwargs)
            if func in _FACTORIES:
                numbers = func(*args, **kwargs)
                if numbers.ndim and numbers.shape[0] % self.slices == 0:
                    raise NotBatchableError(f"{func.__name__} draws random numbers for all slices")
                return numbers
        values = (*args, *kwargs.values())
        if not any(
            self.find(v) or (isinstance(v, list | tuple) and any(map(self.find, v)))
            for v in values
        ):
            return func(*args, **kwargs)
        if func in _METADATA:
            return func(*args, **kwargs)
        handler = _HANDLERS.get(func)
        if handler is not None:
            result = handler(self, func, *args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(
            *map(self._displaced, args), **{k: self._displaced(v) for k, v in kwargs.items()}
        )

    def _displaced(self, value: Any) -> Any:
        if isinstance(value, list | tuple) and any(map(self.find, value)):
            return type(value)(map(self._displaced, value))
        leaf = self.find(value)
        if leaf is None:
            return value
        if leaf.kind != "full":
            self.materialised.add(leaf.name)
        return leaf.materialised()

    # Slices

    def rows(self, x: Tensor) -> Tensor:
        """Return `x` with its first axis split into (slices, the rest)."""
        if x.ndim == 0 or x.shape[0] % self.slices:
            raise NotBatchableError(
                f"a tensor of shape {tuple(x.shape)} meets a parameter and does not have the "
                f"{self.slices} slices of the inputs on its first axis"
            )
        return x.reshape(self.slices, x.shape[0] // self.slices, *x.shape[1:])

    def _dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0.0:
            return input
        parts = self.rows(input)
        mask = F.dropout(torch.ones_like(parts[0]), p, True)
        result = (parts * mask).reshape(input.shape)
        return input.copy_(result) if inplace else result

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kw: Any) -> Any:
        p = args[1] if len(args) > 1 else kw.get("dropout_p", 0.0)
        if p == 0.0:
            return F.scaled_dot_product_attention(query, key, value, *args, **kw)
        mask = args[0] if args else kw.get("attn_mask")
        rest, states, results = args[1:], _generators(query.device), []
        per_slice = mask is not None and mask.ndim > 2 and mask.shape[0] == query.shape[0]
        masks = self.rows(mask) if per_slice else [mask] * self.slices
        kw = {name: value for name, value in kw.items() if name != "attn_mask"}
        for q, k, v, m in zip(*map(self.rows, (query, key, value)), masks, strict=True):
            _set_generators(states)
            results.append(F.scaled_dot_product_attention(q, k, v, m, *rest, **kw))
        return torch.cat(results)


def _generators(device: torch.device) -> list[tuple[torch.device | None, Tensor]]:
    states: list[tuple[torch.device | None, Tensor]] = [(None, torch.get_rng_state())]
    if device.type == "cuda":
        states.append((device, torch.cuda.get_rng_state(device)))
    return states


def _set_generators(states: list[tuple[torch.device | None, Tensor]]) -> None:
    for device, state in states:
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


# Functions that draw numbers for each entry, with the default of their argument `training`;
# None for those that have none.
_RANDOM: dict[Any, bool | None] = {
    F.alpha_dropout: False, F.feature_alpha_dropout: False, F.dropout1d: True, F.dropout2d: True,
    F.dropout3d: True, F.rrelu: False, F.gumbel_softmax: None, torch.bernoulli: None,
    torch.multinomial: None, torch.rand_like: None, torch.randn_like: None,
    torch.randint_like: None, Tensor.bernoulli_: None, Tensor.uniform_: None,
    Tensor.normal_: None, Tensor.exponential_: None, Tensor.random_: None, torch.normal: None,
}  # fmt: skip
_FACTORIES = {torch.rand, torch.randn, torch.randint, torch.randperm}
# What is read of a parameter that no displacement changes.
_METADATA = {
    getattr(Tensor, name).__get__
    for name in (
        "shape", "dtype", "device", "requires_grad", "is_cuda", "is_cpu", "ndim", "grad",
        "is_leaf", "layout", "is_sparse", "is_quantized", "is_meta", "itemsize", "nbytes",
        "grad_fn", "_version", "is_nested", "is_mps",
    )
} | {
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride, Tensor.is_contiguous, Tensor.data_ptr,
    Tensor.is_floating_point, Tensor.element_size, Tensor.__len__, Tensor.storage_offset,
    torch.is_floating_point, torch.numel, Tensor.nelement, Tensor.is_complex, Tensor.get_device,
    Tensor.untyped_storage, Tensor.__hash__,
}  # fmt: skip


def _refuse(func: Any, args: Any, kwargs: Any) -> None:
    """Raise if a function would mix the probes, or give each of them random numbers of its own."""
    if func in _RANDOM:
        default = _RANDOM[func]
        on = default is None or kwargs.get("training", args[2] if len(args) > 2 else default)
        if on:
            raise NotBatchableError(f"{getattr(func, '__name__', func)} draws random numbers")
    if func is F.batch_norm and kwargs.get("training", args[5] if len(args) > 5 else False):
        raise NotBatchableError("batch norm in training mode mixes the probes' statistics")


# The functions that have an overlay. Each handler is called outside of the mode.

_HANDLERS: dict[Any, Callable[..., Any]] = {}


def _handles(*functions: Any) -> Callable[[Any], Any]:
    def register(handler: Any) -> Any:
        _HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def _low_rank(overlay: Overlay, leaf: Overlaid, x: Tensor, y: Tensor, transposed: bool) -> Tensor:
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


def _plain(overlay: Overlay, *values: Any) -> bool:
    """Tell whether none of the values is an overlaid parameter."""
    return all(overlay.find(v) is None for v in values)


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
    return y if leaf is None else _low_rank(overlay, leaf, input, y, transposed=False)


@_handles(torch.addmm)
def _addmm(overlay: Overlay, func: Any, input: Any, mat1: Any, mat2: Any, **kwargs: Any) -> Any:
    leaf = overlay.find(mat2)
    usual = overlay.find(mat1) is None and not kwargs and input.ndim == 1
    if not usual or (leaf is not None and leaf.kind == "full"):
        return NotImplemented
    y = _bias(overlay, input, _shrunk(leaf, mat1 @ mat2))
    return y if leaf is None else _low_rank(overlay, leaf, mat1, y, transposed=True)


@_handles(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm)
def _matmul(overlay: Overlay, func: Any, input: Any, other: Any) -> Any:
    leaf = overlay.find(other)
    usual = leaf is not None and leaf.kind != "full" and other.ndim == 2 and input.ndim >= 2
    if not usual or overlay.find(input):
        return NotImplemented
    assert leaf is not None
    y = _shrunk(leaf, func(input, other))
    return _low_rank(overlay, leaf, input, y, transposed=True)


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
