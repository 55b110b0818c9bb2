"""Perturbations computed beside the weights: ``y = x W^T + (x R^T) L^T``.

A mode looks at the functions that a forward pass calls. Where one takes a parameter that is
overlaid, the low-rank term is added to what it returns; a function for which no such rule is
known gets the perturbed weight, made for this one call, and `Overlay.unknown` names it, so that
the weight can be moved in place from then on.

With several slices (`Overlay.slices`), each of the equal parts of the first axis has a
perturbation of its own, and the product with the weight is shared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.overrides import TorchFunctionMode

from zomopi_core.update import Change

from ._torch_accumulating import Accumulating
from ._torch_leaf import HALF, Source

Handler = Callable[..., Any]


class NotBatchableError(Exception):
    """A forward pass does something that several probes cannot share."""


class Overlaid(Accumulating):
    """A parameter whose displacement is added to the outputs of the functions that use it."""

    binding = "overlay"

    def __init__(self, *args: Any, mergeable: bool = True) -> None:
        super().__init__(*args)
        self.mergeable = mergeable
        self.places: list[tuple[Tensor | None, float]] = []  # of the slices: varying and scale
        self.settled: Tensor | None = None  # coordinates that a merge could not bring anywhere

    def refresh(self, source: Source, frame: Tensor | None = None) -> None:
        """Draw a new frame; where the weight cannot take the coordinates up, keep the first."""
        if self.mergeable:
            super().refresh(source, frame)

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
        self.places, self.settled = [], extra.get("settled")

    def extra_state(self) -> dict[str, Tensor]:
        """Return the coordinates, those at the last merge, and the factor of the weight."""
        extra = super().extra_state()
        return extra if self.settled is None else {**extra, "settled": self.settled}

    def forget(self) -> None:
        """Drop what was learned beside the weight: somebody has loaded another one."""
        if self.mergeable:
            self.total = self.shrink = None
            self.remember()

    def merge(self, source: Source) -> None:
        """Bring the coordinates into the weight; 16-bit weights are rounded stochastically.

        Where the weight cannot take them up they stay, and copies of the model get them.
        """
        if not self.mergeable:
            self.settled = None if self.total is None else self.total.clone()
            return
        if self.total is None and self.shrink is None:
            return
        self._write(self.param, self.param, self.total, source)
        self.total = self.shrink = None
        self.remember()

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
        known = [self.total, *[held for held, _ in places]]
        if all(x is None for x in known):
            return None
        assert self.shared is not None
        zero = torch.zeros_like(next(x for x in known if x is not None))
        steps, shared = zero if self.total is None else self.total, self.shared.to(dtype)
        # one at a time: there may be many
        probes = (zero if held is None else held * scale for held, scale in places)
        if dtype in HALF and self.total is not None and any(x is not None for x in known[1:]):
            across = -2 if self.kind == "left" else -1
            parts = [torch.cat([steps.to(dtype), p.to(dtype)], dim=across) for p in probes]
            shared = torch.cat([shared, shared], dim=-1 if self.kind == "left" else -2)
        else:
            parts = [(steps + p).to(dtype) for p in probes]
        varying = torch.stack(parts) if self.places else parts[0]
        return (shared, varying) if self.kind == "left" else (varying, shared)

    def vector(self, dtype: torch.dtype) -> Tensor | None:
        """Return what is added to a parameter in its full space, (slices, *shape)."""
        parts = self.displacements()
        if all(p is None for p in parts):
            return None
        zero = torch.zeros_like(self.state.momentum)
        return torch.stack([zero if p is None else p for p in parts]).to(dtype)

    def materialised(self) -> Tensor:
        """Return the displaced parameter as an array of its own."""
        if self.places:
            raise NotBatchableError(
                f"{self.name} is used by a function that no overlay is known for"
            )
        value = torch.empty_like(self.param)
        displacement = self.displacements()[0]
        self._write(value, self.param.detach(), displacement, None)
        return value


class Overlay(TorchFunctionMode):  # type: ignore[misc]
    """The mode in which overlaid parameters act as if they were displaced.

    Parameters
    ----------
    handlers : mapping
        Function -> what takes its place: gets the overlay, the function and its arguments, and
        returns NotImplemented for arguments that it does not know.
    """

    def __init__(self, handlers: Mapping[Any, Handler]) -> None:
        super().__init__()
        self.leaves: dict[int, Overlaid] = {}
        self.slices = 1
        self.unknown: set[str] = set()  # weights that no known function used
        self.active = False
        self._handlers = handlers

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
        handler = self._handlers.get(func)
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
            self.unknown.add(leaf.name)
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
