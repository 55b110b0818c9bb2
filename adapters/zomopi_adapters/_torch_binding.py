"""Which parameters are moved in place, and which are laid over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zomopi_core.rule import Rule
from zomopi_core.sampling import Randomness

from . import _torch_errors as errors
from ._torch_groups import Carrier, storage
from ._torch_in_place import InPlace
from ._torch_leaf import HALF, Leaf, Source
from ._torch_overlay import Overlaid
from ._torch_reference import Referenced

_LAYERS = (
    nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.LayerNorm, nn.GroupNorm,
)  # fmt: skip


def overlay_places(model: nn.Module | None) -> set[int]:
    """Return the ids of the parameters whose modules are known to work with an overlay."""
    if model is None:
        return set()
    if any("OptimizedModule" in type(m).__name__ for m in model.modules()):
        return set()  # an overlay would run what was compiled eagerly
    return {
        id(p)
        for m in model.modules()
        if isinstance(m, _LAYERS) or type(m).__name__ == "Conv1D"
        for p in m.parameters(recurse=False)
    } | {id(p) for p in model.parameters() if p.ndim < 2}


@dataclass(frozen=True)
class Choice:
    """How the binding of a parameter is chosen.

    Parameters
    ----------
    binding : {"auto", "in_place", "overlay"}
    reference : {"device", "host"}, optional
    places : set of int
        What `overlay_places` returned.
    weights : int
        Bytes of all parameters.
    padding : dict
        What `padding_rows` returned.
    """

    binding: str
    reference: str | None
    places: set[int]
    weights: int
    padding: dict[Any, int]

    def leaf(
        self, index: int, name: str, param: Tensor, group: dict[str, Any], random: Randomness
    ) -> Leaf:
        """Return the leaf of a parameter, with its state before the first step."""
        rule = group["method"].rule(param.ndim)
        carried = isinstance(param, Carrier)
        # Float32 is moved in place to a documented bound at no cost in the forward pass; for 16
        # bits a reference would cost the weights' memory once more.
        auto = self.binding == "auto" and param.dtype in HALF and id(param) in self.places
        leaf: Leaf
        if carried or auto or self.binding == "overlay":
            leaf = Overlaid(index, name, param, rule, group)
            leaf.still = self.padding.get(storage(param))
            leaf.init(random)
            if leaf.kind != "full" or param.ndim < 2:
                return leaf
            if carried:
                raise errors.quantised_full_space(name, group["method"].name)
            # In the full space there is nothing thin to lay over.
        leaf = self.in_place(index, name, param, rule, group)
        leaf.init(random)
        return leaf

    def in_place(
        self, index: int, name: str, param: Tensor, rule: Rule, group: dict[str, Any]
    ) -> Leaf:
        """Return a leaf that is moved in place, without a state."""
        leaf: Leaf
        if param.dtype in HALF:
            device = self._reference_device(param)
            leaf = Referenced(index, name, param, rule, group, device=device)
        else:
            leaf = InPlace(index, name, param, rule, group)
        leaf.still = self.padding.get(storage(param))
        return leaf

    def instead_of(self, other: Overlaid, source: Source) -> Leaf:
        """Return a leaf that goes on in place where an overlay cannot be used."""
        leaf = self.in_place(other.index, other.name, other.param, other.rule, other.group)
        leaf.succeed(other, source)
        return leaf

    def _reference_device(self, param: Tensor) -> torch.device:
        if self.reference == "host":
            return torch.device("cpu")
        if self.reference is None and param.device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(param.device)
            if free < 2 * self.weights:
                return torch.device("cpu")
        return param.device
