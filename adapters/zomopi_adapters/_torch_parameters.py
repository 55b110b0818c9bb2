"""The parameters that are trained: their leaves, and the overlay that the model runs under."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zomopi_core.errors import nonfinite_parameters
from zomopi_core.sampling import Randomness, Sampler

from . import _torch_errors as errors
from ._torch_binding import Choice, overlay_places
from ._torch_groups import Carrier, padding_rows, storage
from ._torch_hooks import LearnedBeside, LoadedWeights, OverlaidForward
from ._torch_layers import HANDLERS
from ._torch_leaf import Leaf, Source
from ._torch_overlay import Overlaid, Overlay
from ._torch_reference import Referenced
from ._torch_scope import own_arithmetic, uninterrupted

log = logging.getLogger("zomopi")


class Parameters:
    """The leaves of an optimizer, in the order of their numbers.

    Parameters
    ----------
    model : torch.nn.Module, optional
        Without it nothing can be laid over.
    binding : {"auto", "in_place", "overlay"}
    reference : {"device", "host"}, optional
    """

    def __init__(self, model: nn.Module | None, binding: str, reference: str | None) -> None:
        self.model, self._binding, self._reference = model, binding, reference
        self.leaves: list[Leaf] = []
        self.overlay = Overlay(HANDLERS)
        self._choice: Choice | None = None
        self._plain_forward: Any = None
        self._loaded: LoadedWeights | None = None
        self._hook: Any = None

    @property
    def kinds(self) -> set[str]:
        """Kinds of devices of all leaves."""
        return {leaf.param.device.type for leaf in self.leaves}

    def make(
        self, groups: list[dict[str, Any]], seed: Randomness | int | Sampler
    ) -> tuple[list[Leaf], Randomness]:
        """Return leaves of what is new in the groups, and where their draws come from."""
        known = {id(leaf.param) for leaf in self.leaves}
        new = [
            (name, param, group)
            for group in groups
            for name, param in zip(group["names"], group["params"], strict=True)
            if id(param) not in known
        ]
        names = [name for name, _, _ in new] + [leaf.name for leaf in self.leaves]
        if len(set(names)) != len(names):
            raise errors.same_name(next(name for name in names if names.count(name) > 1))
        if not names:
            raise errors.nothing_to_train()
        self._choice = choice = Choice(
            self._binding,
            self._reference,
            overlay_places(self.model) if self._binding == "auto" else set(),
            sum(p.numel() * p.element_size() for g in groups for p in g["params"]),
            padding_rows(self.model),
        )
        made: list[Leaf] = []
        random = seed
        for name, param, group in sorted(new, key=lambda entry: entry[0]):
            if param.device.type == "meta":
                raise errors.without_values(name)
            if not isinstance(param, Carrier) and not _is_finite(param):
                raise nonfinite_parameters(name)
            if not isinstance(random, Randomness):
                random = Randomness(random, param.detach())
            index = len(self.leaves) + len(made)
            with own_arithmetic({param.device.type}):
                made.append(choice.leaf(index, name, param, group, random))
        assert isinstance(random, Randomness)
        return made, random

    def take(self, leaves: list[Leaf]) -> None:
        """Let leaves take part."""
        self.leaves += leaves
        for leaf in leaves:
            if isinstance(leaf, Overlaid):
                self._lay_over(leaf)
        self._wrap()

    def _lay_over(self, leaf: Overlaid) -> None:
        if isinstance(leaf.param, Carrier):
            leaf.mergeable = False
            hook = LearnedBeside(self.overlay, leaf)
            leaf.param.module.register_forward_hook(hook, with_kwargs=True)
            return
        same = storage(leaf.param)
        everything = self.model.parameters() if self.model is not None else ()
        for param in (leaf.param, *everything):
            if storage(param) == same:
                self.overlay.leaves[id(param)] = leaf

    def fall_back(self, names: Iterable[str], source: Source) -> None:
        """Move parameters in place that are laid over, from X, where they stand."""
        assert self._choice is not None
        for number, leaf in enumerate(self.leaves):
            if leaf.name not in names or not isinstance(leaf, Overlaid):
                continue
            with own_arithmetic(self.kinds), uninterrupted():
                self.leaves[number] = self._choice.instead_of(leaf, source)
            for key in [key for key, one in self.overlay.leaves.items() if one is leaf]:
                del self.overlay.leaves[key]
            self.overlay.unknown.discard(leaf.name)
            text = self.bindings()[leaf.name]
            log.info("%s is used in a way that has no overlay; from now on: %s", leaf.name, text)

    @property
    def _is_wrapped(self) -> bool:
        forward = None if self.model is None else self.model.__dict__.get("forward")
        return isinstance(forward, OverlaidForward) and forward.overlay is self.overlay

    def _wrap(self) -> None:
        """Let the model act as trained outside of the steps, too, where it is overlaid."""
        model = self.model
        if model is not None and self.overlay.leaves and not self._is_wrapped:
            self._plain_forward = model.__dict__.get("forward")
            model.forward = OverlaidForward(model, self.overlay)
            self._loaded = LoadedWeights(model, self.overlay)
            self._hook = model.register_load_state_dict_post_hook(self._loaded)

    def expect_weights(self, expected: bool) -> None:
        """Say whether weights that are loaded belong to what is beside them."""
        if self._loaded is not None:
            self._loaded.paused = expected

    def unwrap(self) -> None:
        """Take the overlay off the model."""
        if self._is_wrapped:
            assert self.model is not None
            self._hook.remove()
            del self.model.forward
            if self._plain_forward is not None:
                self.model.forward = self._plain_forward

    def merge(self, source: Source) -> None:
        """Bring what was learned beside the weights into them."""
        with own_arithmetic(self.kinds), uninterrupted():
            for leaf in self.leaves:
                leaf.merge(source)

    def bindings(self) -> dict[str, str]:
        """Return how each parameter is evaluated, by name."""
        result = {}
        for leaf in self.leaves:
            text = leaf.binding
            if isinstance(leaf, Referenced):
                text += f", reference on {leaf.device}"
            result[leaf.name] = text
        return result

    def describe(self) -> str:
        """Return one line for each way in which parameters are evaluated."""
        found: dict[str, list[str]] = {}
        for name, text in self.bindings().items():
            found.setdefault(text, []).append(name)
        lines = []
        for text, names in found.items():
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            lines.append(f"{text}: {len(names)} parameters ({shown})")
        return "\n".join(lines)

    def adapter(self) -> dict[str, dict[str, Tensor]]:
        """Return what was learned beside the weights, as low-rank factors."""
        result: dict[str, dict[str, Tensor]] = {}
        for leaf in self.leaves:
            if not isinstance(leaf, Overlaid) or leaf.total is None:
                continue
            if leaf.kind == "full":
                result[leaf.name] = {"update": leaf.total.clone()}
            else:
                left, right = leaf.product(leaf.total)
                result[leaf.name] = {"left": left.clone(), "right": right.clone()}
        return result


def _is_finite(param: Tensor) -> bool:
    """Tell whether all entries are finite, without an array of that size."""
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    total = param.detach().sum(dtype=wide)
    return bool(torch.isfinite(total)) or bool(torch.isfinite(param).all())
